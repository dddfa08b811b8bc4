"""Are the bytes handed to the kernel the right bytes?"""
