"""What `framework plugins new` starts from: one working plugin of each kind, whose class it renames."""
