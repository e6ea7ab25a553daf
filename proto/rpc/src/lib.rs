//! Millrace's gRPC contract: the messages and services of `millrace.v1`, generated from the `.proto` files in
//! `proto/millrace/v1`, and how errors travel.
//!
//! No behaviour lives here: the daemon implements the services, `millrace` and other programs call them.
//! The `.proto` files carry the documentation of every call and field, with units.

mod error;

/// Version 1 of the contract.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("millrace.v1");

    /// Every file of this version as a protobuf `FileDescriptorSet`, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("millrace_v1");
}

/// The contract of `millrace-tower`'s own administration.
pub mod tower {
    /// Version 1 of it.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("millrace.tower.v1");
    }
}
