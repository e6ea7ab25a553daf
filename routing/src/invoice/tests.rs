#![allow(clippy::unwrap_used)]

use lightning_invoice::{RawHrp, SiPrefix};
use proptest::prelude::*;
use secp256k1::SecretKey;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};

use super::*;

const EXAMPLES: &str = include_str!("../../tests/vectors/bolt11-examples-and-invalid.txt");
/// BOLT 11's payee.
const PAYEE: &str = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad";
const HASH: &str = "0001020304050607080900010203040506070809000102030405060708090102";
const TIMESTAMP: Duration = Duration::from_secs(1_496_314_658);

fn key() -> SecretKey {
    "e126f68f7eafcc8b74f54d269fe206be715000f94dac067d1c04a8ca3b2db734".parse().unwrap()
}

/// The file's examples by title: the quoted lines hold a title, then the invoice.
fn examples(valid: bool) -> Vec<(String, String)> {
    let (good, bad) = EXAMPLES.split_once("# Examples of Invalid Invoices").unwrap();
    let mut found = Vec::new();
    let mut title = String::new();
    for line in if valid { good } else { bad }.lines().filter_map(|line| line.strip_prefix("> ")) {
        match line.trim().strip_prefix('#') {
            Some(words) => title = words.trim_start_matches('#').trim().to_owned(),
            None if line.trim().is_empty() => {}
            None => found.push((title.clone(), line.trim().to_owned())),
        }
    }
    found
}

fn example(start: &str) -> Invoice {
    let all = examples(true);
    let (_, text) = all.iter().find(|(title, _)| title.starts_with(start)).unwrap();
    Invoice::parse(text).unwrap()
}

fn refused(start: &str) -> InvoiceError {
    let all = examples(false);
    let (_, text) = all.iter().find(|(title, _)| title.starts_with(start)).unwrap();
    Invoice::parse(text).unwrap_err()
}

fn new_invoice() -> NewInvoice {
    NewInvoice {
        network: Network::Regtest,
        amount: Some(Msat(21_000)),
        payment_hash: HASH.parse().unwrap(),
        payment_secret: PaymentSecret::new([0x11; 32]),
        description: Description::Text("coffee".to_owned()),
        timestamp: TIMESTAMP,
        expiry: Duration::from_secs(60),
        min_final_cltv: MIN_FINAL_CLTV,
        basic_mpp: false,
        payment_metadata: None,
        route_hints: Vec::new(),
    }
}

/// An invoice of ours with its human-readable part replaced, properly signed.
fn signed_with_prefix(hrp: RawHrp) -> String {
    let signed: SignedRawBolt11Invoice = new_invoice().sign(&key()).unwrap().parse().unwrap();
    let raw = RawBolt11Invoice { hrp, ..signed.raw_invoice().clone() };
    raw.sign(|message| Ok::<_, ()>(SECP256K1.sign_ecdsa_recoverable(message, &key()))).unwrap().to_string()
}

fn signed_with_field(field: TaggedField) -> String {
    let signed: SignedRawBolt11Invoice = new_invoice().sign(&key()).unwrap().parse().unwrap();
    let mut raw = signed.raw_invoice().clone();
    raw.data.tagged_fields.push(field.into());
    raw.sign(|message| Ok::<_, ()>(SECP256K1.sign_ecdsa_recoverable(message, &key()))).unwrap().to_string()
}

mod parse {
    use super::*;

    #[test]
    fn every_valid_example_of_bolt_11() {
        let all = examples(true);
        assert_eq!(all.len(), 15);
        for (title, text) in &all {
            let invoice = Invoice::parse(text).unwrap_or_else(|fault| panic!("{title}: {fault}"));
            let recovered = title.starts_with("Public-key recovery");
            assert_eq!(invoice.payee.to_string() == PAYEE, !recovered, "{title}");
            assert_eq!(invoice.payment_secret, PaymentSecret::new([0x11; 32]), "{title}");
        }
    }

    #[test]
    fn every_invalid_example_of_bolt_11() {
        let all = examples(false);
        assert_eq!(all.len(), 10);
        for (title, text) in &all {
            assert!(Invoice::parse(text).is_err(), "{title}");
        }
    }

    #[test]
    fn agrees_with_lightning_invoice_on_every_example() {
        for (title, text) in examples(true).into_iter().chain(examples(false)) {
            let Ok(theirs) = text.parse::<lightning_invoice::Bolt11Invoice>() else {
                assert!(Invoice::parse(&text).is_err(), "{title}");
                continue;
            };
            let ours = Invoice::parse(&text).unwrap();
            assert_eq!(ours.payee, theirs.get_payee_pub_key(), "{title}");
            assert_eq!(ours.amount.map(|amount| amount.0), theirs.amount_milli_satoshis(), "{title}");
            assert_eq!(ours.payment_hash.0, *AsRef::<[u8; 32]>::as_ref(theirs.payment_hash()), "{title}");
            assert_eq!(ours.expiry, theirs.expiry_time(), "{title}");
            assert_eq!(u64::from(ours.min_final_cltv.0), theirs.min_final_cltv_expiry_delta(), "{title}");
            assert_eq!(ours.payment_metadata.as_ref(), theirs.payment_metadata(), "{title}");
            assert_eq!(ours.network, theirs.network(), "{title}");
            assert_eq!(ours.timestamp, theirs.duration_since_epoch(), "{title}");
        }
    }

    #[test]
    fn a_donation_of_any_amount() {
        let invoice = example("Please make a donation");
        assert_eq!(invoice.amount, None);
        assert_eq!(invoice.network, Network::Bitcoin);
        assert_eq!(invoice.payment_hash, HASH.parse().unwrap());
        assert_eq!(invoice.timestamp, TIMESTAMP);
        assert_eq!(invoice.expiry, DEFAULT_EXPIRY);
        assert_eq!(invoice.min_final_cltv, DEFAULT_MIN_FINAL_CLTV);
        assert_eq!(invoice.description, Description::Text("Please consider supporting this project".to_owned()));
        assert!(invoice.features.requires(Feature::PaymentSecret) && invoice.features.requires(Feature::VarOnion));
        assert!(!invoice.may_be_paid_in_parts());
        assert!(invoice.is_for(Network::Bitcoin) && !invoice.is_for(Network::Testnet4));
    }

    #[test]
    fn a_coffee_within_one_minute() {
        let invoice = example("Please send $3");
        assert_eq!(invoice.amount, Some(Msat(250_000_000)));
        assert_eq!(invoice.expiry, Duration::from_secs(60));
        assert!(!invoice.has_expired(TIMESTAMP + Duration::from_secs(59)));
        assert!(invoice.has_expired(TIMESTAMP + Duration::from_secs(60)));
    }

    #[test]
    fn a_hashed_description_on_testnet() {
        let invoice = example("The same, on testnet");
        let words = "3925b6f67e2c340036ed12093dd44e0368df1b6ea26c53dbe4811f58fd5db8c1";
        assert_eq!(invoice.description, Description::Hash(hex::decode(words).unwrap().try_into().unwrap()));
        assert!(invoice.is_for(Network::Testnet) && invoice.is_for(Network::Testnet4));
        assert!(!invoice.is_for(Network::Bitcoin));
    }

    #[test]
    fn two_hops_of_routing_info() {
        let invoice = example("On mainnet, with fallback address 1Rusty");
        let hop = |node: &str, scid: u64, base: u64, millionths: u32, delta: u16| HintHop {
            node_id: node.parse().unwrap(),
            short_channel_id: ShortChannelId(scid),
            fee_base: Msat(base),
            fee_proportional_millionths: millionths,
            cltv_expiry_delta: CltvDelta(delta),
        };
        let first = "029e03a901b85534ff1e92c43c74431f7ce72046060fcf7a95c37e148f78c77255";
        let second = "039e03a901b85534ff1e92c43c74431f7ce72046060fcf7a95c37e148f78c77255";
        let route = vec![hop(first, 0x0102_0304_0506_0708, 1, 20, 3), hop(second, 0x0304_0506_0708_090a, 2, 30, 4)];
        assert_eq!(invoice.route_hints, [route]);
    }

    #[test]
    fn a_pico_amount_and_payment_metadata() {
        assert_eq!(example("Please send 0.00967878534").amount, Some(Msat(967_878_534)));
        let invoice = example("Please send 0.01 BTC with payment metadata");
        assert_eq!(invoice.payment_metadata, Some(vec![0x01, 0xfa, 0xfa, 0xf0]));
        assert!(invoice.features.requires(Feature::PaymentMetadata));
    }

    #[test]
    fn faults_are_told_apart() {
        assert_eq!(refused("Same, but adding invalid unknown feature 100"), InvoiceError::Features { bits: vec![100] });
        assert_eq!(refused("Signature is not recoverable"), InvoiceError::Signature);
        let amount = InvoiceError::Amount { number: 2_500_000_001, unit_pico: 1 };
        assert_eq!(refused("Invalid sub-millisatoshi"), amount);
        assert!(matches!(refused("Bech32 checksum"), InvoiceError::Malformed(_)));
        assert!(matches!(refused("Invalid multiplier"), InvoiceError::Malformed(_)));
        assert_eq!(refused("Missing required `s`"), InvoiceError::Field { field: "payment secret", found: 0 });
    }

    #[test]
    fn scheme_space_and_case_do_not_matter() {
        let text = new_invoice().sign(&key()).unwrap();
        let invoice = Invoice::parse(&text).unwrap();
        assert_eq!(Invoice::parse(&format!(" lightning:{text}\n")).unwrap(), invoice);
        assert_eq!(Invoice::parse(&format!("LIGHTNING:{}", text.to_uppercase())).unwrap(), invoice);
    }

    #[test]
    fn an_amount_that_overflows_is_not_any_amount() {
        let hrp = RawHrp { currency: Currency::Regtest, raw_amount: Some(u64::MAX), si_prefix: None };
        let fault = InvoiceError::Amount { number: u64::MAX, unit_pico: PICO_PER_BITCOIN };
        assert_eq!(Invoice::parse(&signed_with_prefix(hrp)), Err(fault));
    }

    #[test]
    fn no_amount_of_zero_and_none_beyond_all_bitcoin() {
        for (number, prefix) in [(0, None), (0, Some(SiPrefix::Pico)), (21_000_001, None)] {
            let hrp = RawHrp { currency: Currency::Regtest, raw_amount: Some(number), si_prefix: prefix };
            assert!(matches!(Invoice::parse(&signed_with_prefix(hrp)), Err(InvoiceError::Amount { .. })), "{number}");
        }
        let hrp = RawHrp { currency: Currency::Regtest, raw_amount: Some(1), si_prefix: None };
        assert_eq!(Invoice::parse(&signed_with_prefix(hrp)).unwrap().amount, Some(Msat(100_000_000_000)));
    }

    #[test]
    fn simnet_is_not_taken_for_regtest() {
        let hrp = RawHrp { currency: Currency::Simnet, raw_amount: None, si_prefix: None };
        assert_eq!(Invoice::parse(&signed_with_prefix(hrp)), Err(InvoiceError::Network("simnet".to_owned())));
    }

    #[test]
    fn two_payment_secrets_or_hashes_or_descriptions() {
        let secret = TaggedField::PaymentSecret(lightning_invoice::PaymentSecret([9; 32]));
        let words = TaggedField::Description(lightning_invoice::Description::new("tea".to_owned()).unwrap());
        for (field, name) in [(secret, "payment secret"), (words, "description")] {
            let fault = InvoiceError::Field { field: name, found: 2 };
            assert_eq!(Invoice::parse(&signed_with_field(field)), Err(fault));
        }
    }

    #[test]
    fn a_named_payee_must_be_the_signer_with_a_low_s() {
        use lightning_invoice::PayeePubKey;
        let ours = key().public_key(SECP256K1);
        let text = signed_with_field(TaggedField::PayeePubKey(PayeePubKey(ours)));
        assert_eq!(Invoice::parse(&text).unwrap().payee, ours);

        let other = SecretKey::from_slice(&[5; 32]).unwrap().public_key(SECP256K1);
        let text = signed_with_field(TaggedField::PayeePubKey(PayeePubKey(other)));
        assert_eq!(Invoice::parse(&text), Err(InvoiceError::Signature));

        let high = with_high_s(TaggedField::PayeePubKey(PayeePubKey(ours)));
        assert_eq!(Invoice::parse(&high), Err(InvoiceError::Signature));
    }

    /// Any signature has a twin of high S under the other parity.
    fn with_high_s(field: TaggedField) -> String {
        let signed: SignedRawBolt11Invoice = signed_with_field(field).parse().unwrap();
        let twin = |message: &Message| {
            let (id, mut bytes) = SECP256K1.sign_ecdsa_recoverable(message, &key()).serialize_compact();
            let s = SecretKey::from_slice(&bytes[32..]).unwrap().negate();
            bytes[32..].copy_from_slice(&s.secret_bytes());
            RecoverableSignature::from_compact(&bytes, RecoveryId::from_i32(id.to_i32() ^ 1).unwrap())
        };
        signed.raw_invoice().clone().sign(twin).unwrap().to_string()
    }

    #[test]
    fn a_last_hop_of_65_536_blocks() {
        let mut new = new_invoice();
        new.min_final_cltv = CltvDelta(u16::MAX);
        assert_eq!(Invoice::parse(&new.sign(&key()).unwrap()).unwrap().min_final_cltv, CltvDelta(u16::MAX));

        let signed: SignedRawBolt11Invoice = new.sign(&key()).unwrap().parse().unwrap();
        let mut raw = signed.raw_invoice().clone();
        for field in &mut raw.data.tagged_fields {
            if let lightning_invoice::RawTaggedField::KnownSemantics(TaggedField::MinFinalCltvExpiryDelta(delta)) =
                field
            {
                delta.0 = 65_536;
            }
        }
        let text =
            raw.sign(|message| Ok::<_, ()>(SECP256K1.sign_ecdsa_recoverable(message, &key()))).unwrap().to_string();
        assert_eq!(Invoice::parse(&text), Err(InvoiceError::MinFinalCltv { blocks: 65_536 }));
    }

    #[test]
    fn text_beyond_the_limit() {
        let text = "1".repeat(TEXT_BYTES_MAX + 1);
        assert_eq!(Invoice::parse(&text), Err(InvoiceError::TooLong { bytes: TEXT_BYTES_MAX + 1 }));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,300}") {
            let _ = Invoice::parse(&text);
            let _ = Invoice::parse(&format!("lightning:lnbc1{text}"));
        }

        #[test]
        fn one_changed_character_is_noticed(at in 0usize..200, to in "[qpzry9x8gf2tvdw0s3jn54khce6mua7l]") {
            let text = new_invoice().sign(&key()).unwrap();
            let at = at % text.len();
            prop_assume!(text[at..=at] != to);
            let changed = format!("{}{to}{}", &text[..at], &text[at + 1..]);
            prop_assert!(Invoice::parse(&changed).is_err());
        }
    }
}

mod sign {
    use super::*;

    #[test]
    fn is_read_back_as_it_was_meant() {
        let hint = HintHop {
            node_id: PAYEE.parse().unwrap(),
            short_channel_id: ShortChannelId(7),
            fee_base: Msat(1000),
            fee_proportional_millionths: 10,
            cltv_expiry_delta: CltvDelta(80),
        };
        let new = NewInvoice {
            payment_metadata: Some(vec![1, 2, 3]),
            basic_mpp: true,
            route_hints: vec![vec![hint], vec![hint, hint]],
            ..new_invoice()
        };
        let invoice = Invoice::parse(&new.sign(&key()).unwrap()).unwrap();
        let expected = Invoice {
            network: Network::Regtest,
            amount: Some(Msat(21_000)),
            payment_hash: new.payment_hash,
            payment_secret: new.payment_secret.clone(),
            description: new.description.clone(),
            timestamp: TIMESTAMP,
            expiry: Duration::from_secs(60),
            min_final_cltv: MIN_FINAL_CLTV,
            payee: key().public_key(SECP256K1),
            features: Features::from_bits(&[8, 14, 17, 48]),
            payment_metadata: new.payment_metadata.clone(),
            route_hints: new.route_hints.clone(),
        };
        assert_eq!(invoice, expected);
        assert!(invoice.may_be_paid_in_parts());
    }

    #[test]
    fn every_network_has_its_prefix() {
        let networks = [
            (Network::Bitcoin, "lnbc1"),
            (Network::Testnet, "lntb1"),
            (Network::Testnet4, "lntb1"),
            (Network::Signet, "lntbs1"),
            (Network::Regtest, "lnbcrt1"),
        ];
        for (network, prefix) in networks {
            let text = NewInvoice { network, amount: None, ..new_invoice() }.sign(&key()).unwrap();
            assert!(text.starts_with(prefix), "{text}");
            let invoice = Invoice::parse(&text).unwrap();
            assert!(invoice.is_for(network));
            assert_eq!(invoice.amount, None);
        }
    }

    #[test]
    fn refuses_what_bolt_11_cannot_say() {
        let refused = |new: NewInvoice| new.sign(&key()).unwrap_err();
        let new = new_invoice;
        let long = "x".repeat(640);
        assert!(matches!(refused(NewInvoice { amount: Some(Msat(0)), ..new() }), InvoiceError::Amount { .. }));
        assert!(matches!(refused(NewInvoice { amount: Some(Msat(u64::MAX)), ..new() }), InvoiceError::Amount { .. }));
        let description = Description::Text(long.clone());
        assert!(matches!(refused(NewInvoice { description, ..new() }), InvoiceError::Malformed(_)));
        let payment_metadata = Some(long.into_bytes());
        assert!(matches!(refused(NewInvoice { payment_metadata, ..new() }), InvoiceError::Malformed(_)));
        let hop = HintHop {
            node_id: PAYEE.parse().unwrap(),
            short_channel_id: ShortChannelId(7),
            fee_base: Msat(1 << 32),
            fee_proportional_millionths: 10,
            cltv_expiry_delta: CltvDelta(80),
        };
        let route_hints = vec![vec![hop]];
        assert!(matches!(refused(NewInvoice { route_hints, ..new() }), InvoiceError::Malformed(_)));
        let timestamp = Duration::from_secs(1 << 35);
        assert!(matches!(refused(NewInvoice { timestamp, ..new() }), InvoiceError::Malformed(_)));
    }

    #[test]
    fn the_longest_description_fits() {
        let description = Description::Text("x".repeat(639));
        let text = NewInvoice { description: description.clone(), ..new_invoice() }.sign(&key()).unwrap();
        assert_eq!(Invoice::parse(&text).unwrap().description, description);
    }

    proptest! {
        #[test]
        fn any_amount_and_time_come_back(
            msat in 1..=u64::MAX / PICO_PER_MSAT, seconds in 0u64..1 << 35, expiry in any::<u32>()
        ) {
            let new = NewInvoice {
                amount: Some(Msat(msat)),
                timestamp: Duration::from_secs(seconds),
                expiry: Duration::from_secs(expiry.into()),
                ..new_invoice()
            };
            let text = new.sign(&key()).unwrap();
            let invoice = Invoice::parse(&text).unwrap();
            prop_assert_eq!(invoice.amount, new.amount);
            prop_assert_eq!(invoice.timestamp, new.timestamp);
            prop_assert_eq!(invoice.expiry, new.expiry);
            prop_assert!(text.parse::<lightning_invoice::Bolt11Invoice>().is_ok());
        }
    }
}
