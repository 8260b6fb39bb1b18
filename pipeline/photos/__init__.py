"""From files to pixels: finding photos, decoding them, finding the faces in them."""
