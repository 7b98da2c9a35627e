"""Kernels of Octavo: one public function per operation, a torch reference beside each."""
