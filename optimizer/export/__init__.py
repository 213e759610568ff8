"""What leaves: tables, the report, and files of compressed models."""
