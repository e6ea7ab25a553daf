//! Channels are opened until the reserve forbids another one; then all of them close at once, at 100 sat/vB (attacks.md,
//! "Anchor reserve exhaustion").

use std::collections::BTreeSet;

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_channel::phase::Phase;
use millrace_channel::{Command, CommitmentFormat};
use millrace_wire::{ChannelId, FeeratePerKw, Msat, Sat};
use millraced::wallet::{Label, ReservePolicy, TxKind, WalletError};

use crate::ends::{End, Owner, disconnect, exchange, open, terms};
use crate::world::World;

/// At 100 sat/vB a commitment with one HTLC and its child cost 50,500 sat, and the HTLC's own transaction 27,000.
const RESERVE: ReservePolicy = ReservePolicy { per_channel: Sat(100_000), max: Sat(100_000_000) };
const CAPACITY: Sat = Sat(1_000_000);
/// What HTLCs hold: one in each channel.
const HTLC: Msat = Msat(60_000_000);
const EXPIRY: u32 = 40;
/// What 100 sat/vB make of the transactions that fill the mempool.
const FILLING_FEE: u64 = 9_600_000;
/// By when an HTLC is to be taken back, in blocks after its expiry.
const TAKE_BACK: u32 = 12;

/// Opens channels, each with its funding in a block, until it is refused.
async fn open_until_refused(world: &mut World, alice: &Owner, bob: &Owner) -> (Vec<(End, End)>, WalletError) {
    let mut ends: Vec<(End, End)> = Vec::new();
    loop {
        let index = u8::try_from(ends.len()).unwrap();
        alice.wallet.set_anchor_channels(u32::from(index)).await.unwrap();
        let mut terms = terms(alice, bob, CommitmentFormat::Anchors);
        (terms.capacity, terms.push) = (CAPACITY, Sat(CAPACITY.0 / 2).to_msat());
        terms.channel_id = ChannelId([index + 1; 32]);
        let script = millrace_channel::tx::funding::output_of(&terms).script_pubkey;
        let made = alice.wallet.fund_channel(script, CAPACITY, FeeratePerKw(1_000), true).await.unwrap();
        let made = match made {
            Ok(made) => made,
            Err(refusal) => return (ends, refusal),
        };
        terms.funding_outpoint = OutPoint { txid: made.tx.compute_txid(), vout: made.vout };
        let label = Label { kind: TxKind::Funding, channel: Some(terms.channel_id) };
        world.bitcoind.send(&made.tx).await.unwrap();
        alice.wallet.mark_broadcast(made.tx, label, 1).await.unwrap();
        world.regtest.mine_to_wallet(1).unwrap();
        world.follow(&[alice], &mut ends.iter_mut().map(|(end, _)| end).collect::<Vec<_>>()).await;
        let (mut one, other) = open(world, alice.share(), bob.share(), &terms, FeeratePerKw::FLOOR);
        // One task claims for all channels of a node.
        if let Some((first, _)) = ends.first() {
            one.claimer = first.claimer.clone();
        }
        ends.push((one, other));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_channels_close_at_once_at_100_sat_per_vbyte() {
    let mut world = World::start(&["-maxmempool=5"]).await;
    let (alice, bob) = (Owner::with_reserve(1, RESERVE), Owner::new(2));
    world.follow(&[&alice], &mut []).await;
    let script = alice.wallet.new_destination().await.unwrap();
    world.pay(&script, Sat(9_500_000), &[&alice]).await;
    let (mut ends, refusal) = open_until_refused(&mut world, &alice, &bob).await;
    // One more would take its capacity, and what is kept for it and all others.
    assert_eq!(ends.len(), 8, "{refusal}");
    assert!(matches!(refusal, WalletError::Reserve { reserve: Sat(900_000), .. }), "{refusal}");
    let all = alice.wallet.send(
        "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080".to_owned(),
        millraced::wallet::Amount::All,
        FeeratePerKw(1_000),
    );
    if let Ok(made) = all.await.unwrap() {
        world.bitcoind.send(&made.tx).await.unwrap();
        let label = Label { kind: TxKind::Withdrawal, channel: None };
        alice.wallet.mark_broadcast(made.tx, label, 2).await.unwrap();
        world.regtest.mine_to_wallet(1).unwrap();
        world.follow(&[&alice], &mut ends.iter_mut().map(|(end, _)| end).collect::<Vec<_>>()).await;
    }
    let count = u64::try_from(ends.len()).unwrap();
    assert_eq!(
        alice.wallet.balance().await.unwrap().confirmed,
        Sat(RESERVE.per_channel.0 * count),
        "the reserve alone"
    );

    let expiry = world.height().0 + EXPIRY;
    for (one, other) in &mut ends {
        one.offer(HTLC, 1, expiry);
        exchange(one, other);
        disconnect(one, other);
    }
    let mut ends: Vec<End> = ends.into_iter().map(|(one, _)| one).collect();
    world.fill_mempool(FILLING_FEE, 20_000_000, &mut ends.iter_mut().collect::<Vec<_>>()).await;
    world.mine_empty(&mut ends.iter_mut().collect::<Vec<_>>()).await;
    let minimum = world.bitcoind.mempool_info().await.unwrap().minimum.to_sat();
    assert!(minimum > 95_000, "{minimum} sat per kvB");
    for end in &mut ends {
        end.command(Command::ForceClose { reason: "by hand".to_owned() });
    }
    let commitments: Vec<Transaction> = ends.iter().map(|end| end.commitment.clone().unwrap()).collect();
    all_in_mempool(&world, &mut ends[0], &commitments).await;

    while world.height().0 < expiry + TAKE_BACK {
        world.mine(1, &mut ends.iter_mut().collect::<Vec<_>>()).await;
        ends[0].until_settled().await;
    }
    for end in &ends {
        let Phase::OnChain(on_chain) = end.channel.phase() else { panic!("{:?}", end.channel.phase()) };
        let htlcs = on_chain.spent.iter().filter(|spent| spent.second_level.is_some()).count();
        assert_eq!(htlcs, 1, "the HTLC is taken back by {}: {on_chain:?}", world.height());
    }
}

/// Every commitment is in the mempool with a child of its own.
async fn all_in_mempool(world: &World, end: &mut End, commitments: &[Transaction]) {
    let txids: BTreeSet<Txid> = commitments.iter().map(Transaction::compute_txid).collect();
    for _ in 0..600 {
        let mempool: BTreeSet<Txid> = world.regtest.mempool().unwrap().into_iter().collect();
        if txids.is_subset(&mempool) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{:#?}", end.claimer.status().borrow());
}
