"""Looking at vocabularies: what of one is used, how several compare, and what can be left out."""
