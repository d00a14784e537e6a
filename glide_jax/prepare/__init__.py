"""Turn captioned images in folders, tars or parquet files into shards for training."""
