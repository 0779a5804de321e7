"""Files: native adapter folders, and their way in and out."""
