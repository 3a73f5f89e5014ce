"""Convert model files for OpenVINO; everything here runs in a child process."""
