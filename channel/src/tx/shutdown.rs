//! The scripts that a mutual close may pay to, and when an output to one is dust (BOLT 2, "Closing Initiation:
//! `shutdown`"; BOLT 3, "Dust Limits").
//!
//! That a script keeps to what was committed upfront is checked where the message is handled.

use bitcoin::Script;
use bitcoin::opcodes::all::{OP_PUSHBYTES_6, OP_PUSHBYTES_75, OP_PUSHDATA1, OP_RETURN};
use millrace_wire::Sat;
use thiserror::Error;

/// A script that `shutdown` or `closing_complete` may not name.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadShutdownScript {
    /// A later segwit version needs `option_shutdown_anysegwit`.
    #[error("shutdown script of {bytes} bytes is segwit version {version} without option_shutdown_anysegwit")]
    SegwitVersion {
        /// The witness version.
        version: u8,
        /// The length of the script.
        bytes: usize,
    },
    /// `OP_RETURN` needs `option_simple_close`.
    #[error("shutdown script of {bytes} bytes is OP_RETURN without option_simple_close")]
    OpReturn {
        /// The length of the script.
        bytes: usize,
    },
    /// None of the forms that BOLT 2 lists.
    #[error("shutdown script of {bytes} bytes has none of the allowed forms")]
    Form {
        /// The length of the script.
        bytes: usize,
    },
}

/// Whether a mutual close may pay to `script`, with what is negotiated: `option_shutdown_anysegwit`,
/// `option_simple_close`.
///
/// # Errors
/// What is wrong with it.
pub fn check_shutdown_script(script: &Script, anysegwit: bool, simple_close: bool) -> Result<(), BadShutdownScript> {
    let bytes = script.len();
    if script.is_p2wpkh() || script.is_p2wsh() {
        return Ok(());
    }
    if is_op_return(script) {
        return if simple_close { Ok(()) } else { Err(BadShutdownScript::OpReturn { bytes }) };
    }
    match script.witness_version().map(bitcoin::WitnessVersion::to_num) {
        None | Some(0) => Err(BadShutdownScript::Form { bytes }),
        Some(_) if anysegwit => Ok(()),
        Some(version) => Err(BadShutdownScript::SegwitVersion { version, bytes }),
    }
}

/// `OP_RETURN` and one push: of 6 to 75 bytes, or by `OP_PUSHDATA1` of 76 to 80 bytes.
#[must_use]
pub fn is_op_return(script: &Script) -> bool {
    let (short, long) = (OP_PUSHBYTES_6.to_u8()..=OP_PUSHBYTES_75.to_u8(), 76..=80);
    match script.as_bytes() {
        [first, ..] if *first != OP_RETURN.to_u8() => false,
        [_, push, data @ ..] if short.contains(push) => data.len() == usize::from(*push),
        [_, push, length, data @ ..] if *push == OP_PUSHDATA1.to_u8() => {
            long.contains(length) && data.len() == usize::from(*length)
        }
        _ => false,
    }
}

/// BOLT 3, "Dust Limits": an output to `script` below this is not relayed. `OP_RETURN` is never dust.
#[must_use]
pub fn dust_threshold(script: &Script) -> Sat {
    if script.is_op_return() {
        return Sat::ZERO;
    }
    if script.is_p2wpkh() {
        return Sat(294);
    }
    if script.is_p2wsh() {
        return Sat(330);
    }
    if script.is_witness_program() {
        return Sat(354);
    }
    if script.is_p2sh() {
        return Sat(540);
    }
    Sat(546)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bitcoin::ScriptBuf;

    fn script(head: &[u8], data: usize) -> ScriptBuf {
        ScriptBuf::from_bytes([head, &vec![0x11; data]].concat())
    }

    #[test]
    fn forms_allowed_always() {
        for allowed in [script(&[0, 20], 20), script(&[0, 32], 32)] {
            assert_eq!(check_shutdown_script(&allowed, false, false), Ok(()));
        }
    }

    #[test]
    fn forms_never_allowed() {
        let p2pkh = ScriptBuf::from_bytes([&[0x76, 0xa9, 20], &[1; 20][..], &[0x88, 0xac]].concat());
        let p2sh = ScriptBuf::from_bytes([&[0xa9, 20], &[1; 20][..], &[0x87]].concat());
        let wrong_length = [script(&[0, 20], 19), script(&[0, 20], 21), script(&[0, 31], 31), script(&[0x51, 1], 1)];
        let too_long = [script(&[0x51, 41], 41), script(&[0x61, 32], 32), ScriptBuf::new(), script(&[0x51], 0)];
        for refused in [p2pkh, p2sh].into_iter().chain(wrong_length).chain(too_long) {
            let bytes = refused.len();
            assert_eq!(check_shutdown_script(&refused, true, true), Err(BadShutdownScript::Form { bytes }));
        }
    }

    #[test]
    fn later_segwit_versions_need_anysegwit() {
        for (opcode, version) in [(0x51, 1), (0x52, 2), (0x60, 16)] {
            for length in [2, 32, 40] {
                let later = script(&[opcode, length], usize::from(length));
                assert_eq!(check_shutdown_script(&later, true, false), Ok(()));
                let bytes = later.len();
                assert_eq!(
                    check_shutdown_script(&later, false, true),
                    Err(BadShutdownScript::SegwitVersion { version, bytes })
                );
            }
        }
    }

    #[test]
    fn op_return_needs_simple_close_and_one_push_of_the_right_length() {
        let allowed =
            [script(&[0x6a, 6], 6), script(&[0x6a, 75], 75), script(&[0x6a, 76, 76], 76), script(&[0x6a, 76, 80], 80)];
        for op_return in allowed {
            assert_eq!(check_shutdown_script(&op_return, false, true), Ok(()));
            let bytes = op_return.len();
            assert_eq!(check_shutdown_script(&op_return, true, false), Err(BadShutdownScript::OpReturn { bytes }));
        }
        let refused = [
            script(&[0x6a], 0),
            script(&[0x6a, 5], 5),
            script(&[0x6a, 6], 7),
            script(&[0x6a, 6], 5),
            script(&[0x6a, 76, 75], 75),
            script(&[0x6a, 76, 81], 81),
            script(&[0x6a, 76, 76], 75),
            script(&[0x6a, 77, 76, 0], 76),
        ];
        for op_return in refused {
            let bytes = op_return.len();
            assert_eq!(check_shutdown_script(&op_return, true, true), Err(BadShutdownScript::Form { bytes }));
        }
    }

    #[test]
    fn dust_thresholds_of_bolt_3() {
        assert_eq!(dust_threshold(&script(&[0, 20], 20)), Sat(294));
        assert_eq!(dust_threshold(&script(&[0, 32], 32)), Sat(330));
        assert_eq!(dust_threshold(&script(&[0x51, 32], 32)), Sat(354));
        assert_eq!(dust_threshold(&script(&[0x6a, 6], 6)), Sat(0));
        let p2pkh = ScriptBuf::from_bytes([&[0x76, 0xa9, 20], &[1; 20][..], &[0x88, 0xac]].concat());
        assert_eq!(dust_threshold(&p2pkh), Sat(546));
        let p2sh = ScriptBuf::from_bytes([&[0xa9, 20], &[1; 20][..], &[0x87]].concat());
        assert_eq!(dust_threshold(&p2sh), Sat(540));
    }
}
