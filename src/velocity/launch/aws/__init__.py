"""What a job needs of AWS. Pure where it can be; boto3 is imported where it is used."""
