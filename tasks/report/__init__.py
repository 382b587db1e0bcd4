"""Tables, figures, the HTML page, and the MLflow run."""
