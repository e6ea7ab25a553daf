//! What LDK could read of the failures that came back for its own payments (BOLT 4, "Returning Errors").
//!
//! Its events say only that a payment has failed. Which hop said what, it writes into its log, and nowhere else.

/// A failure that LDK has decrypted and understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// The public key of the node that it is by, as hexadecimal.
    pub node_id: String,
    /// BOLT 4's failure code.
    pub code: u16,
}

/// How LDK begins its word for one it could read.
const READ: &str = "Onion Error[from ";

/// Its words for what it could not read, or not attribute to the node that it should be by.
const UNREAD: [&str; 5] = [
    "Non-attributable failure",
    "Unreadable failure from",
    "Missing error code in failure from",
    "Invalid failure HMAC in attribution data",
    "Invalid fulfill HMAC in attribution data",
];

/// In the order in which they came.
pub(super) fn decoded(log: &str) -> Vec<Decoded> {
    log.lines().filter_map(decoded_of).collect()
}

/// The lines that say that something could not be read.
pub(super) fn unread(log: &str) -> Vec<String> {
    log.lines().filter(|line| UNREAD.iter().any(|words| line.contains(words))).map(str::to_owned).collect()
}

/// `Onion Error[from KEY: Name(0x1007)]`, with a field of the failure before the last bracket if it has one.
fn decoded_of(line: &str) -> Option<Decoded> {
    let (_, rest) = line.split_once(READ)?;
    let (node_id, rest) = rest.split_once(": ")?;
    let (_, rest) = rest.split_once("(0x")?;
    let (digits, _) = rest.split_once(')')?;
    Some(Decoded { node_id: node_id.to_owned(), code: u16::from_str_radix(digits, 16).ok()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_ldk_writes_is_read() {
        let log = "INFO x Onion Error[from 02ab: IncorrectPaymentDetails(0x400f)]\n\
                   INFO x something else (0x1)\n\
                   INFO x Onion Error[from 03cd: FeeInsufficient(0x100c) htlc_msat(00000000000f4240)]\n\
                   WARN x Non-attributable failure encountered on route 02ab->03cd. And more\n";
        let by = |node_id: &str, code| Decoded { node_id: node_id.to_owned(), code };
        assert_eq!(decoded(log), [by("02ab", 0x400f), by("03cd", 0x100c)]);
        assert_eq!(unread(log).len(), 1);
    }
}
