//! Where others may call this node, as a `node_announcement` says it (BOLT 7, "The `node_announcement` Message").

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use lightning::ln::msgs::SocketAddress;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A host and a port: IPv4, IPv6, a Tor v3 onion service, or a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAddress(SocketAddress);

/// Why a text is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// It does not read as one.
    #[error("expected HOST:PORT with an IPv4 or [IPv6] address, a Tor v3 onion service or a name")]
    Unreadable,
    /// Nobody could call it.
    #[error("port 0 cannot be called")]
    NoPort,
    /// BOLT 7 has no form for it any more.
    #[error("Tor v2 onion services are gone")]
    OnionV2,
}

impl NodeAddress {
    /// As LDK has it.
    pub(super) const fn inner(&self) -> &SocketAddress {
        &self.0
    }

    /// BOLT 7: addresses stand in the order of their types.
    pub(super) const fn type_number(&self) -> u8 {
        match &self.0 {
            SocketAddress::TcpIpV4 { .. } => 1,
            SocketAddress::TcpIpV6 { .. } => 2,
            SocketAddress::OnionV2(_) => 3,
            SocketAddress::OnionV3 { .. } => 4,
            SocketAddress::Hostname { .. } => 5,
        }
    }
}

impl FromStr for NodeAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address = SocketAddress::from_str(text).map_err(|_| AddressError::Unreadable)?;
        match &address {
            SocketAddress::TcpIpV4 { port, .. }
            | SocketAddress::TcpIpV6 { port, .. }
            | SocketAddress::OnionV3 { port, .. }
            | SocketAddress::Hostname { port, .. } => {
                if *port == 0 {
                    return Err(AddressError::NoPort);
                }
            }
            SocketAddress::OnionV2(_) => return Err(AddressError::OnionV2),
        }
        Ok(Self(address))
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            // LDK writes every zero.
            SocketAddress::TcpIpV6 { addr, port } => write!(f, "[{}]:{port}", Ipv6Addr::from(*addr)),
            other => other.fmt(f),
        }
    }
}

impl Serialize for NodeAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_form_of_bolt_7_reads_and_is_written_as_it_was() {
        let onion = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion:9735";
        for (text, number) in
            [("203.0.113.7:9735", 1), ("[2001:db8::7]:9735", 2), (onion, 4), ("node.example.org:9735", 5)]
        {
            let address: NodeAddress = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.type_number()), (text, number));
            let bytes = postcard::to_stdvec(&address).unwrap();
            assert_eq!(postcard::from_bytes::<NodeAddress>(&bytes).unwrap(), address);
        }
    }

    #[test]
    fn what_nobody_could_call_is_refused() {
        assert_eq!("203.0.113.7:0".parse::<NodeAddress>(), Err(AddressError::NoPort));
        for text in ["", "203.0.113.7", "node.example.org", "node.example.org:99999", "expyuzz4wqqyqhjn.onion"] {
            assert_eq!(text.parse::<NodeAddress>(), Err(AddressError::Unreadable), "{text}");
        }
    }
}
