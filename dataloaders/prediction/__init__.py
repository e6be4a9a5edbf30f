"""What predict.py is made of: finding queries, predicting, cleaning, pictures, records."""
