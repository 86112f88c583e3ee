"""What a run does: plan, forecast, build, show, and check that it resumes."""
