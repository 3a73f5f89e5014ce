"""Run embed, resume, update and retry from the driver."""
