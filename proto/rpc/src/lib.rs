//! Millrace's gRPC contract.
