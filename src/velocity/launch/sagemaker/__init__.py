"""Training jobs of AWS SageMaker, and what of AWS they need. boto3 is imported where it is used."""
