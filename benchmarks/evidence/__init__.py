"""What the methods do to the pictures of the demo model: samples, measures, statistics, tables and figures."""
