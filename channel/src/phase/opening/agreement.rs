//! What `open_channel` and `accept_channel` say together, and what follows from it: both first commitments, and the
//! channel (BOLT 2, "The `funding_created` Message", "The `funding_signed` Message").

use bitcoin::{OutPoint, ScriptBuf, Transaction};
use millrace_wire::message::{AcceptChannel, OpenChannel};
use millrace_wire::{ChannelId, CommitmentNumber, FeeratePerKw, Msat, Sat, ShortChannelId, Signature};
use secp256k1::PublicKey;

use super::Surroundings;
use super::limits::{
    Unacceptable, channel_type_of, check_affordable, check_announced, check_funding, check_party, check_remote,
    check_reserves, check_upfront,
};
use super::message::{ANNOUNCE_CHANNEL, remote_fundee, remote_funder};
use super::request::{AcceptParams, OpenRequest};
use crate::channel::Channel;
use crate::curve::{Curve, VerifyJob};
use crate::effect::Effects;
use crate::input::LinkFeatures;
use crate::keys::{ChannelKeys, CommitmentKeys};
use crate::record::{Opened, Record, Signature64};
use crate::side::{Both, Side};
use crate::terms::{ChannelType, PartyTerms, Terms};
use crate::tx::funding;
use crate::tx::{Commitment, CommitmentSpec};

const FIRST: CommitmentNumber = CommitmentNumber(0);

/// Everything but the funding outpoint.
#[derive(Clone, Debug)]
pub(super) struct Agreement {
    pub(super) remote_node: PublicKey,
    pub(super) funder: Side,
    pub(super) channel_type: ChannelType,
    pub(super) capacity: Sat,
    pub(super) push: Msat,
    pub(super) feerate: FeeratePerKw,
    pub(super) minimum_depth: u32,
    pub(super) announce: bool,
    pub(super) parties: Both<PartyTerms>,
    pub(super) remote_first_point: PublicKey,
    pub(super) features: LinkFeatures,
    pub(super) keys: ChannelKeys,
    pub(super) keys_index: u64,
    pub(super) local_alias: ShortChannelId,
}

impl Agreement {
    /// Everything about `open_channel`.
    pub(super) fn of_open(
        open: OpenChannel,
        params: AcceptParams,
        around: &Surroundings<'_>,
    ) -> Result<Self, Unacceptable> {
        if open.chain_hash != params.chain_hash {
            return Err(Unacceptable::WrongChain { theirs: open.chain_hash, ours: params.chain_hash });
        }
        let id = open.temporary_channel_id;
        if id.is_all() || (around.is_taken)(id) {
            return Err(Unacceptable::TemporaryIdTaken(id));
        }
        let channel_type = channel_type_of(open.channel_type.as_ref())?;
        if channel_type.zero_conf && !params.is_zero_conf_allowed {
            return Err(Unacceptable::ZeroConfNotAllowed);
        }
        let announce = open.channel_flags & ANNOUNCE_CHANNEL != 0;
        check_announced(channel_type, announce)?;
        let OpenChannel { funding, push, feerate, first_per_commitment_point, .. } = open;
        check_funding(funding, push, &params.limits, params.features.large_channel)?;
        let local = params.local.to_party(&params.keys);
        check_party(&local)?;
        check_upfront(local.upfront_shutdown_script.clone(), &params.features)?;
        let remote = remote_funder(open, &params.features)?;
        check_remote(&remote, &params.limits, funding)?;
        let parties = Both { local, remote };
        check_reserves(&parties)?;
        for reserve in [parties.remote.channel_reserve, parties.local.channel_reserve] {
            check_affordable(channel_type.format, feerate, funding, push, reserve)?;
        }
        let minimum_depth = match (channel_type.zero_conf, params.is_zero_conf_allowed) {
            (true, _) => 0,
            (false, true) => params.minimum_depth,
            (false, false) => params.minimum_depth.max(1),
        };
        Ok(Self {
            remote_node: params.remote_node,
            funder: Side::Remote,
            channel_type,
            capacity: funding,
            push,
            feerate,
            minimum_depth,
            announce,
            parties,
            remote_first_point: first_per_commitment_point,
            features: params.features.link,
            keys: params.keys,
            keys_index: params.keys_index,
            local_alias: params.local_alias,
        })
    }

    /// Everything about `accept_channel`.
    pub(super) fn of_accept(request: OpenRequest, accept: AcceptChannel) -> Result<Self, Unacceptable> {
        let OpenRequest { channel_type, funding, push, feerate, .. } = request;
        let (theirs, ours) =
            (accept.channel_type.clone().ok_or(Unacceptable::NoChannelType)?, channel_type.to_features());
        if theirs != ours {
            return Err(Unacceptable::OtherChannelType { ours, theirs });
        }
        let AcceptChannel { minimum_depth, first_per_commitment_point, .. } = accept;
        if minimum_depth > request.limits.minimum_depth_max {
            return Err(Unacceptable::DepthTooLarge { depth: minimum_depth, max: request.limits.minimum_depth_max });
        }
        if channel_type.zero_conf && minimum_depth != 0 {
            return Err(Unacceptable::DepthOfZeroConf { depth: minimum_depth });
        }
        let remote = remote_fundee(accept, &request.features)?;
        check_remote(&remote, &request.limits, funding)?;
        let parties = Both { local: request.local.to_party(&request.keys), remote };
        check_reserves(&parties)?;
        check_affordable(channel_type.format, feerate, funding, push, parties.remote.channel_reserve)?;
        Ok(Self {
            remote_node: request.remote_node,
            funder: Side::Local,
            channel_type,
            capacity: funding,
            push,
            feerate,
            minimum_depth,
            announce: request.announce,
            parties,
            remote_first_point: first_per_commitment_point,
            features: request.features.link,
            keys: request.keys,
            keys_index: request.keys_index,
            local_alias: request.local_alias,
        })
    }

    /// BOLT 2 wants an id that nobody can change: every input is native segwit, and signed. The index of the output.
    pub(super) fn check_funding_tx(&self, tx: &Transaction, vout: u32) -> Result<u16, Unacceptable> {
        let amount = self.capacity;
        let wrong_output = Unacceptable::WrongFundingOutput { vout, amount };
        let output = tx.output.get(vout as usize);
        if output.map(|output| (Sat::from(output.value), &output.script_pubkey))
            != Some((amount, &self.script_pubkey()))
        {
            return Err(wrong_output);
        }
        if tx.input.is_empty() {
            return Err(Unacceptable::NoInput);
        }
        let is_fixed = |input: &bitcoin::TxIn| {
            input.script_sig.is_empty() && !input.witness.is_empty() && !input.previous_output.is_null()
        };
        if let Some(input) = tx.input.iter().position(|input| !is_fixed(input)) {
            return Err(Unacceptable::MalleableInput { input });
        }
        u16::try_from(vout).map_err(|_| wrong_output)
    }

    /// The script that the funding output pays.
    pub(super) fn script_pubkey(&self) -> ScriptBuf {
        let key = |side: Side| &self.parties.of(side).basepoints.funding;
        funding::output(key(Side::Local), key(Side::Remote), self.capacity).script_pubkey
    }

    /// The terms of the channel that this output funds.
    pub(super) fn terms(&self, funding_outpoint: OutPoint) -> Terms {
        Terms {
            channel_id: ChannelId::v1_from_funding(funding_outpoint),
            remote_node: self.remote_node,
            funder: self.funder,
            channel_type: self.channel_type,
            funding_outpoint,
            capacity: self.capacity,
            push: self.push,
            minimum_depth: self.minimum_depth,
            announce: self.announce,
            parties: self.parties.clone(),
        }
    }

    fn first_commitment(&self, terms: &Terms, side: Side) -> Commitment {
        let point = match side {
            Side::Local => self.keys.commitment_point(FIRST),
            Side::Remote => self.remote_first_point,
        };
        let keys = CommitmentKeys::of(terms, side, &point);
        let balances = terms.first_balances();
        let spec = CommitmentSpec { side, number: FIRST, feerate: self.feerate, balances, htlcs: &[] };
        Commitment::build(terms, &keys, &spec)
    }

    /// Our signature on the peer's first commitment.
    pub(super) fn sign_remote(&self, terms: &Terms) -> Signature {
        self.first_commitment(terms, Side::Remote).sign(terms, &self.keys)
    }

    /// Whether this is the peer's signature on our first commitment, low-S included.
    pub(super) fn is_local_signed(&self, terms: &Terms, signature: &Signature, curve: &impl Curve) -> bool {
        let digest = self.first_commitment(terms, Side::Local).funding_sighash(terms);
        let key = self.parties.remote.basepoints.funding;
        curve.verify_all(&[VerifyJob { digest, key, signature: *signature }]).is_ok()
    }

    /// The channel, written down: nothing of it may leave before that (D5).
    pub(super) fn open(
        self,
        terms: Terms,
        signature: Signature,
        funding_tx: Option<Transaction>,
        around: &Surroundings<'_>,
        fx: &mut Effects,
    ) -> Channel {
        let opened = Opened {
            terms,
            keys_index: self.keys_index,
            feerate: self.feerate,
            signature: Signature64(signature),
            remote_first_point: self.remote_first_point,
            funding_tx,
            opened_at: around.height,
            local_alias: self.local_alias,
        };
        fx.record(&Record::Opened(Box::new(opened.clone())));
        let mut channel =
            Channel::from_opened(opened, self.keys, around.policy).expect("the terms were made of these very keys");
        channel.begin_link(self.features);
        channel
    }
}
