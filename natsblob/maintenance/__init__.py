"""What keeps a bucket in order: adopting what others stored, and examining a deployment."""
