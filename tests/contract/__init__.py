"""Every law for every method and every architecture, by table: a new method or model is one row."""
