"""What a run found, as tables, figures, sentences and one page: collect, compare, table, plot, verdict, page."""
