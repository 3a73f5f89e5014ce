"""Make a model file ready for OpenVINO; everything here runs in a child process."""
