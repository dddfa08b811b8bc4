"""Does the candidate kernel compute the right bits?"""
