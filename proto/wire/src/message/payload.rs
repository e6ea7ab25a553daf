//! What every message has: a type number, a name and a form on the wire (BOLT 1).
//!
//! Messages of our own implement it beside their fields. Those that keep LDK's structs do it here, through LDK's codec;
//! what LDK leaves unread at the end is still held to BOLT 1's rules for extensions. None of these has a part whose length
//! the peer chooses, but for what stands at the end: there LDK reserves memory by the length that is claimed.

use lightning::ln::msgs;
use lightning::util::ser::{LengthReadable, Writeable};

use super::codec::Reader;
use super::error::{DecodeError, FieldFault};
use crate::id::ChannelId;

/// One kind of message, without its type number.
pub(crate) trait Payload: Sized {
    /// The type number.
    const TYPE: u16;
    /// The name in the BOLTs.
    const NAME: &'static str;

    /// Appends the fields.
    fn write(&self, out: &mut Vec<u8>);

    /// Reads the fields, extension included.
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The channel it speaks of.
    fn channel_id(&self) -> Option<ChannelId> {
        None
    }
}

impl<T: Payload> Payload for Box<T> {
    const TYPE: u16 = T::TYPE;
    const NAME: &'static str = T::NAME;

    fn write(&self, out: &mut Vec<u8>) {
        T::write(self, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        T::read(r).map(Self::new)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        T::channel_id(self)
    }
}

/// Appends one of LDK's structs.
pub(crate) fn write_foreign(message: &impl Writeable, out: &mut Vec<u8>) {
    out.extend_from_slice(&message.encode());
}

/// Reads one of LDK's structs and checks the extension behind it.
pub(crate) fn read_foreign<T: LengthReadable>(r: &mut Reader<'_>) -> Result<T, DecodeError> {
    let message = read_foreign_part(r)?;
    r.unknown_extension()?;
    Ok(message)
}

/// Reads one of LDK's structs and leaves what is behind it.
pub(crate) fn read_foreign_part<T: LengthReadable>(r: &mut Reader<'_>) -> Result<T, DecodeError> {
    let mut rest = r.peek();
    let before = rest.len();
    let message = T::read_from_fixed_length_buffer(&mut rest).map_err(|fault| {
        let reason = format!("{fault:?}");
        r.fault("fields", FieldFault::Refused { reason })
    })?;
    r.skip(before - rest.len());
    Ok(message)
}

/// A message that keeps LDK's struct: type number, name, and the field that names its channel.
macro_rules! foreign {
    ($($struct:ty, $type:literal, $name:literal $(, $channel_id:ident $(. $inner:ident)*)?;)*) => {$(
        impl Payload for $struct {
            const TYPE: u16 = $type;
            const NAME: &'static str = $name;

            fn write(&self, out: &mut Vec<u8>) {
                write_foreign(self, out);
            }

            fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                read_foreign(r)
            }

            $(fn channel_id(&self) -> Option<ChannelId> {
                Some(self.$channel_id$(.$inner)*.into())
            })?
        }
    )*};
}

foreign! {
    msgs::Stfu, 2, "stfu", channel_id;
    msgs::OpenChannelV2, 64, "open_channel2", common_fields.temporary_channel_id;
    msgs::AcceptChannelV2, 65, "accept_channel2", common_fields.temporary_channel_id;
    msgs::TxRemoveInput, 68, "tx_remove_input", channel_id;
    msgs::TxRemoveOutput, 69, "tx_remove_output", channel_id;
    msgs::TxComplete, 70, "tx_complete", channel_id;
    msgs::TxInitRbf, 72, "tx_init_rbf", channel_id;
    msgs::TxAckRbf, 73, "tx_ack_rbf", channel_id;
    msgs::SpliceLocked, 77, "splice_locked", channel_id;
    msgs::SpliceInit, 80, "splice_init", channel_id;
    msgs::SpliceAck, 81, "splice_ack", channel_id;
    msgs::StartBatch, 127, "start_batch", channel_id;
    msgs::OnionMessage, 513, "onion_message";
}
