//! What the CPU side of the ops shares: fixed work units, vectorised kernels, the matrix product.
