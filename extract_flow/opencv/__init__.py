"""OpenCV's flow methods: TV-L1, DIS and Farneback on the CPU; TV-L1, Brox and Farneback where it has CUDA."""
