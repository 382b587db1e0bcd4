"""A program: writes a data set into the cache of the `datasets` library, where a bomb harms nobody."""

import sys

import datasets


def main(dataset: str, config: str | None = None) -> None:
    """Prepare all splits; what goes wrong is the last line on standard error."""
    datasets.disable_progress_bars()
    try:
        datasets.load_dataset_builder(dataset, config).download_and_prepare()
    except Exception as error:  # the files decide which of all errors are met
        causes = [error, error.__cause__, error.__context__]
        said = [f"{type(each).__name__}: {each}".strip().splitlines()[0] for each in causes if each is not None]
        sys.exit(" ← ".join(dict.fromkeys(said)))


if __name__ == "__main__":
    main(*sys.argv[1:])
