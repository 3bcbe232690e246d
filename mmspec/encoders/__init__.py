"""What the modality encoders are given and what they gave before."""
