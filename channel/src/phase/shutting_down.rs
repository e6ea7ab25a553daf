//! `shutdown` (BOLT 2, "Closing Initiation").

use bitcoin::ScriptBuf;
use millrace_wire::message::Shutdown;

use crate::channel::Channel;
use crate::effect::Effects;
use crate::fault::{PeerFault, Refusal};
use crate::input::CloseOrder;
use crate::side::Side;

impl Channel {
    pub(crate) fn close(&mut self, _order: CloseOrder, _fx: &mut Effects) -> Result<(), Refusal> {
        Err(Refusal::NotUsable("closing is being written"))
    }

    pub(crate) fn on_shutdown(&mut self, _message: Shutdown, _fx: &mut Effects) -> Result<(), PeerFault> {
        Err(PeerFault::warn("BOLT 2", "closing is being written"))
    }

    pub(crate) fn retransmit_shutdown(&mut self, _fx: &mut Effects) {}

    pub(crate) fn apply_shutdown(&mut self, _side: Side, _script: ScriptBuf, _fx: &mut Effects) {}
}
