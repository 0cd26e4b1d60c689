"""The bench: systems under test, their scores with intervals, a table and a page that can be listened to."""
