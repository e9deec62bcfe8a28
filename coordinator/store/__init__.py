"""The database: engine, tables, migrations, keys, known nodes."""
