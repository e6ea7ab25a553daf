//! Every limit, from both sides of it: just inside is taken, just outside is refused with its own reason.

use millrace_wire::{Feature, Features};

use super::*;
use Unacceptable as U;

/// What Bob says to Alice's proposal after `change`.
fn answer(change: impl FnOnce(&mut OpenChannel, &mut AcceptParams)) -> Result<AcceptChannel, Unacceptable> {
    let (_, message) = Opening::propose(request()).unwrap();
    let (mut open, mut params) = (open_of(message), params());
    change(&mut open, &mut params);
    let id = open.temporary_channel_id;
    match Opening::accept(open, params, &around()) {
        Ok((_, message)) => Ok(accept_of(message)),
        Err(refused) => {
            let told = match *refused.reply {
                Message::Error(error) => (error.channel_id, error.data),
                Message::Warning(warning) => {
                    assert!(warning.is_for_all(), "only what would fail all channels is merely a warning");
                    (warning.channel_id, warning.data)
                }
                other => panic!("{}", other.name()),
            };
            assert_eq!(told, (id, format!("{RULE_OPEN}: {}", refused.why).into_bytes()));
            Err(refused.why)
        }
    }
}

/// What Alice's own node says to her request after `change`.
fn ask(change: impl FnOnce(&mut OpenRequest)) -> Result<(), Unacceptable> {
    let mut request = request();
    change(&mut request);
    match Opening::propose(request) {
        Ok(_) => Ok(()),
        Err(Refusal::CannotOpen(why)) => Err(*why),
        Err(other) => panic!("{other}"),
    }
}

/// What Alice makes of Bob's `accept_channel` after `change`.
fn take(ask: impl FnOnce(&mut OpenRequest), change: impl FnOnce(&mut AcceptChannel)) -> Result<(), String> {
    let mut request = request();
    ask(&mut request);
    let (mut alice, message) = Opening::propose(request).unwrap();
    let params = AcceptParams { is_zero_conf_allowed: true, ..params() };
    let (_, message) = Opening::accept(open_of(message), params, &around()).unwrap();
    let mut accept = accept_of(message);
    change(&mut accept);
    let mut fx = Effects::default();
    match alice.on_message(Message::AcceptChannel(Box::new(accept)), &around(), &Serial, &mut fx) {
        Ok(Some(OpeningEvent::FundingNeeded { amount, .. })) => {
            assert_eq!((amount, fx.is_empty(), alice.is_over()), (FUNDING, true, false));
            Ok(())
        }
        Ok(other) => panic!("{other:?}"),
        Err(fault) => {
            assert!(alice.is_over());
            assert_eq!(sent(&fx), [Message::Error(Error::new(TEMPORARY, &fault.to_string()))]);
            assert_eq!(fault.rule, RULE_ACCEPT);
            Err(fault.what)
        }
    }
}

fn no_change(_: &mut OpenRequest) {}

#[test]
fn an_ordinary_proposal_is_accepted() {
    let accept = answer(|_, _| {}).unwrap();
    assert_eq!(accept.temporary_channel_id, TEMPORARY);
    assert_eq!((accept.dust_limit, accept.channel_reserve, accept.minimum_depth), (Sat(354), Sat(10_000), 3));
    assert_eq!(accept.channel_type, Some(ChannelType::ANCHORS.to_features()));
    assert_eq!(accept.upfront_shutdown_script, Some(ScriptBuf::new()));
    assert_eq!((ask(|_| {}), take(no_change, |_| {})), (Ok(()), Ok(())));
}

mod open_channel {
    use super::*;

    #[test]
    fn chain_and_temporary_id() {
        let wrong = answer(|open, _| open.chain_hash = ChainHash::SIGNET);
        assert_eq!(wrong, Err(U::WrongChain { theirs: ChainHash::SIGNET, ours: ChainHash::REGTEST }));
        let all = answer(|open, _| open.temporary_channel_id = ChannelId::ALL);
        assert_eq!(all, Err(U::TemporaryIdTaken(ChannelId::ALL)));
        let (_, message) = Opening::propose(request()).unwrap();
        let is_taken = |id| id == TEMPORARY;
        let taken = Opening::accept(open_of(message), params(), &Surroundings { is_taken: &is_taken, ..around() });
        assert_eq!(taken.unwrap_err().why, U::TemporaryIdTaken(TEMPORARY));
    }

    #[test]
    fn channel_types() {
        let with = |features: Option<Features>, trusted: bool| {
            answer(|open, params| {
                open.channel_type = features;
                params.is_zero_conf_allowed = trusted;
            })
        };
        for base in [&[12][..], &[12, 22]] {
            for variant in [&[][..], &[46], &[50], &[46, 50]] {
                let features = Features::from_bits(&[base, variant].concat());
                assert_eq!(with(Some(features.clone()), true).unwrap().channel_type, Some(features.clone()));
                let refused = variant.contains(&50).then_some(U::ZeroConfNotAllowed);
                assert_eq!(with(Some(features.clone()), false).err(), refused, "{features}");
            }
        }
        assert_eq!(with(None, true).err(), Some(U::NoChannelType));
        for unknown in [&[][..], &[22], &[13], &[12, 23], &[12, 20], &[12, 22, 44], &[12, 22, 3000], &[46]] {
            let features = Features::from_bits(unknown);
            assert_eq!(with(Some(features.clone()), true).err(), Some(U::UnknownChannelType(features)));
        }
    }

    #[test]
    fn an_announced_channel_has_no_alias_and_unknown_flags_are_ignored() {
        let alias = ChannelType { scid_alias: true, ..ChannelType::ANCHORS };
        let with = |channel_type: ChannelType, flags| {
            answer(|open, _| {
                open.channel_type = Some(channel_type.to_features());
                open.channel_flags = flags;
            })
        };
        assert_eq!(with(alias, 1).err(), Some(U::AnnouncedAlias));
        assert!(with(alias, 0xfe).is_ok());
        assert!(with(ChannelType::ANCHORS, 0xff).is_ok());
    }

    #[test]
    fn funding_limits() {
        let with = |funding, large_channel: bool, max| {
            answer(|open, params| {
                open.funding = Sat(funding);
                open.channel_reserve = Sat(1000);
                params.limits.funding_max = max;
                params.features.large_channel = large_channel;
            })
            .err()
        };
        assert_eq!(with(20_000, false, Sat::MAX_MONEY), None);
        assert_eq!(
            with(19_999, false, Sat::MAX_MONEY),
            Some(U::FundingTooSmall { funding: Sat(19_999), min: Sat(20_000) })
        );
        assert_eq!(with(1_000_000, true, Sat(1_000_000)), None);
        let (funding, max) = (Sat(1_000_001), Sat(1_000_000));
        assert_eq!(with(1_000_001, true, max), Some(U::FundingTooLarge { funding, max }));
        assert_eq!(with((1 << 24) - 1, false, Sat::MAX_MONEY), None);
        assert_eq!(with(1 << 24, false, Sat::MAX_MONEY), Some(U::NotLargeChannel { funding: Sat(1 << 24) }));
        assert_eq!(with(1 << 24, true, Sat::MAX_MONEY), None);
        assert_eq!(with(Sat::MAX_MONEY.0, true, Sat(u64::MAX)), None);
        for funding in [Sat(Sat::MAX_MONEY.0 + 1), Sat(u64::MAX)] {
            let max = Sat::MAX_MONEY;
            assert_eq!(with(funding.0, true, Sat(u64::MAX)), Some(U::FundingTooLarge { funding, max }));
        }
    }

    #[test]
    fn push_and_the_first_commitment() {
        // 1,124 sat of fee and 660 sat of anchors.
        let with = |push| answer(|open, _| open.push = Msat(push)).err();
        let all = FUNDING.to_msat().0;
        assert_eq!(with(all - 1_784_000), None);
        assert_eq!(with(all - 1_783_999), Some(U::CannotPayFee { funder: Sat(1783), cost: Sat(1784) }));
        assert_eq!(with(all), Some(U::CannotPayFee { funder: Sat(0), cost: Sat(1784) }));
        assert_eq!(with(all + 1), Some(U::PushTooLarge { push: Msat(all + 1), funding: FUNDING }));
        assert_eq!(with(u64::MAX), Some(U::PushTooLarge { push: Msat(u64::MAX), funding: FUNDING }));
        let plain = answer(|open, _| {
            open.channel_type = Some(Features::from_bits(&[12]));
            open.push = Msat(all - 724_000);
        });
        assert!(plain.is_ok());
    }

    #[test]
    fn one_side_must_have_more_than_the_reserve() {
        let with = |reserve_of_them, reserve_of_us| {
            answer(|open, params| {
                open.funding = Sat(20_000);
                open.push = Msat(9_108_999);
                open.channel_reserve = Sat(reserve_of_them);
                params.local.channel_reserve = Sat(reserve_of_us);
                params.limits.reserve_percent_max = 100;
            })
            .err()
        };
        assert_eq!(with(9_107, 9_107), None);
        let (funder, other, reserve) = (Sat(9_107), Sat(9_108), Sat(9_108));
        let refused = Some(U::BothBelowReserve { funder, other, reserve });
        assert_eq!(with(9_108, 546), refused);
        assert_eq!(with(546, 9_108), refused);
    }

    #[test]
    fn feerate() {
        let with = |feerate| answer(|open, _| open.feerate = FeeratePerKw(feerate)).err();
        for (feerate, is_fine) in [(253, true), (252, false), (0, false), (250_000, true), (250_001, false)] {
            let refused = (!is_fine).then_some(U::Feerate { feerate: FeeratePerKw(feerate) });
            assert_eq!(with(feerate), refused);
        }
        assert_eq!(with(u32::MAX), Some(U::Feerate { feerate: FeeratePerKw(u32::MAX) }));
    }

    #[test]
    fn dust_limit_and_reserve() {
        let with = |dust, reserve| {
            answer(|open, _| {
                open.dust_limit = Sat(dust);
                open.channel_reserve = Sat(reserve);
            })
            .err()
        };
        let bad_dust = |dust| Some(U::DustLimit { dust_limit: Sat(dust) });
        assert_eq!([with(354, 10_000), with(546, 10_000), with(354, 354), with(546, 546)], [const { None }; 4]);
        assert_eq!(with(353, 10_000), bad_dust(353));
        assert_eq!(with(547, 10_000), bad_dust(547));
        assert_eq!(with(354, 353), Some(U::ReserveBelowDust { reserve: Sat(353), dust_limit: Sat(354) }));
        assert_eq!(with(354, 50_000), None);
        assert_eq!(with(354, 50_001), Some(U::ReserveTooLarge { reserve: Sat(50_001), max: Sat(50_000) }));
        assert_eq!(with(354, u64::MAX), Some(U::ReserveTooLarge { reserve: Sat(u64::MAX), max: Sat(50_000) }));
    }

    #[test]
    fn a_small_channel_may_have_the_reserve_that_others_ask_for_at_least() {
        let with = |reserve| {
            answer(|open, _| {
                open.funding = Sat(20_000);
                open.channel_reserve = Sat(reserve);
            })
            .err()
        };
        // Our own reserve stays at 10,000 sat here.
        assert_eq!(with(1000), None);
        assert_eq!(with(1001), Some(U::ReserveTooLarge { reserve: Sat(1001), max: Sat(1000) }));
    }

    #[test]
    fn neither_reserve_is_below_the_others_dust_limit() {
        let with = |their_dust, their_reserve, our_dust, our_reserve| {
            answer(|open, params| {
                (open.dust_limit, open.channel_reserve) = (Sat(their_dust), Sat(their_reserve));
                (params.local.dust_limit, params.local.channel_reserve) = (Sat(our_dust), Sat(our_reserve));
            })
            .err()
        };
        let below = |reserve, dust| Some(U::ReserveBelowDust { reserve: Sat(reserve), dust_limit: Sat(dust) });
        assert_eq!(with(354, 400, 400, 546), None);
        assert_eq!(with(354, 399, 400, 546), below(399, 400));
        assert_eq!(with(500, 10_000, 354, 500), None);
        assert_eq!(with(501, 10_000, 354, 500), below(500, 501));
        assert_eq!(with(354, 10_000, 400, 399), below(399, 400));
    }

    #[test]
    fn delay_slots_minimum_and_in_flight() {
        type Change = fn(&mut OpenChannel, &mut AcceptParams);
        let taken: [Change; 6] = [
            |open, _| open.to_self_delay = 2016,
            |open, _| open.max_accepted_htlcs = 483,
            |open, _| open.max_accepted_htlcs = 1,
            |open, _| open.htlc_minimum = Msat(1_000_000),
            |open, _| open.max_htlc_value_in_flight = Msat(1_000_000),
            |open, params| (open.max_accepted_htlcs, params.limits.accepted_htlcs_min) = (10, 10),
        ];
        for (index, change) in taken.into_iter().enumerate() {
            assert_eq!(answer(change).err(), None, "{index}");
        }
        let refused: [(Change, U); 6] = [
            (|open, _| open.to_self_delay = 2017, U::DelayTooLong { delay: 2017, max: 2016 }),
            (|open, _| open.max_accepted_htlcs = 484, U::AcceptedHtlcs { count: 484, min: 1 }),
            (|open, _| open.max_accepted_htlcs = 0, U::AcceptedHtlcs { count: 0, min: 1 }),
            (
                |open, _| open.htlc_minimum = Msat(1_000_001),
                U::HtlcMinimumTooLarge { minimum: Msat(1_000_001), max: Msat(1_000_000) },
            ),
            (
                |open, _| open.max_htlc_value_in_flight = Msat(999_999),
                U::InFlightTooSmall { in_flight: Msat(999_999), min: Msat(1_000_000) },
            ),
            (
                |open, params| (open.max_accepted_htlcs, params.limits.accepted_htlcs_min) = (9, 10),
                U::AcceptedHtlcs { count: 9, min: 10 },
            ),
        ];
        for (change, why) in refused {
            assert_eq!(answer(change).err(), Some(why));
        }
    }

    #[test]
    fn upfront_shutdown_script() {
        let with = |script: ScriptBuf, change: fn(&mut OpeningFeatures)| {
            answer(|open, params| {
                open.upfront_shutdown_script = Some(script);
                change(&mut params.features);
            })
            .err()
        };
        for fine in [p2wpkh(1), taproot(), ScriptBuf::new()] {
            assert_eq!(with(fine, |_| {}), None);
        }
        assert_eq!(answer(|open, _| open.upfront_shutdown_script = None).err(), None);
        assert!(matches!(with(p2pkh(), |_| {}), Some(U::ShutdownScript(_))));
        assert!(matches!(with(taproot(), |f| f.link.shutdown_anysegwit = false), Some(U::ShutdownScript(_))));
        // Without the feature it binds nobody.
        assert_eq!(with(p2pkh(), |f| f.upfront_shutdown_script = false), None);
        assert!(matches!(
            answer(|_, params| params.local.upfront_shutdown_script = Some(p2pkh())),
            Err(U::ShutdownScript(_))
        ));
    }

    #[test]
    fn depth_is_ours_but_for_zero_conf() {
        let depth = |zero_conf, trusted, wanted| {
            answer(|open, params| {
                open.channel_type = Some(ChannelType { zero_conf, ..ChannelType::ANCHORS }.to_features());
                (params.is_zero_conf_allowed, params.minimum_depth) = (trusted, wanted);
            })
            .unwrap()
            .minimum_depth
        };
        assert_eq!([depth(true, true, 3), depth(false, true, 0), depth(false, true, 6)], [0, 0, 6]);
        assert_eq!([depth(false, false, 0), depth(false, false, 1), depth(false, false, 6)], [1, 1, 6]);
    }
}

mod propose {
    use super::*;

    #[test]
    fn our_own_limits_bind_us() {
        type Change = fn(&mut OpenRequest);
        let all = FUNDING.to_msat();
        let taken: [Change; 8] = [
            |r| (r.funding, r.local.channel_reserve) = (Sat(20_000), Sat(546)),
            |r| (r.funding, r.features.large_channel) = (Sat((1 << 24) - 1), false),
            |r| r.funding = LARGE_CHANNEL,
            |r| r.push = Msat(998_216_000),
            |r| r.feerate = FeeratePerKw(253),
            |r| (r.local.dust_limit, r.local.channel_reserve) = (Sat(546), Sat(546)),
            |r| r.local.max_accepted_htlcs = 1,
            |r| (r.announce, r.local.upfront_shutdown_script) = (true, Some(taproot())),
        ];
        for (index, change) in taken.into_iter().enumerate() {
            assert_eq!(ask(change), Ok(()), "{index}");
        }
        let refused: [(Change, U); 14] = [
            (|r| r.temporary_channel_id = ChannelId::ALL, U::TemporaryIdTaken(ChannelId::ALL)),
            (|r| r.funding = Sat(19_999), U::FundingTooSmall { funding: Sat(19_999), min: Sat(20_000) }),
            (|r| r.limits.funding_max = Sat(999_999), U::FundingTooLarge { funding: FUNDING, max: Sat(999_999) }),
            (
                |r| (r.funding, r.features.large_channel) = (LARGE_CHANNEL, false),
                U::NotLargeChannel { funding: LARGE_CHANNEL },
            ),
            (|r| r.push = Msat(1_000_000_001), U::PushTooLarge { push: Msat(all.0 + 1), funding: FUNDING }),
            (|r| r.push = Msat(998_216_001), U::CannotPayFee { funder: Sat(1783), cost: Sat(1784) }),
            (|r| r.feerate = FeeratePerKw(252), U::Feerate { feerate: FeeratePerKw(252) }),
            (|r| r.feerate = FeeratePerKw(250_001), U::Feerate { feerate: FeeratePerKw(250_001) }),
            (|r| r.local.dust_limit = Sat(353), U::DustLimit { dust_limit: Sat(353) }),
            (|r| r.local.dust_limit = Sat(547), U::DustLimit { dust_limit: Sat(547) }),
            (|r| r.local.channel_reserve = Sat(353), U::ReserveBelowDust { reserve: Sat(353), dust_limit: Sat(354) }),
            (|r| r.local.max_accepted_htlcs = 484, U::AcceptedHtlcs { count: 484, min: 1 }),
            (|r| r.local.max_accepted_htlcs = 0, U::AcceptedHtlcs { count: 0, min: 1 }),
            (|r| (r.announce, r.channel_type.scid_alias) = (true, true), U::AnnouncedAlias),
        ];
        for (change, why) in refused {
            assert_eq!(ask(change), Err(why));
        }
        assert!(matches!(ask(|r| r.local.upfront_shutdown_script = Some(p2pkh())), Err(U::ShutdownScript(_))));
    }

    #[test]
    fn no_feature_that_the_peer_lacks() {
        type Change = fn(&mut OpenRequest);
        let lacking: [(Change, Feature); 3] = [
            (|r| r.features.anchors = false, Feature::Anchors),
            (|r| (r.channel_type.scid_alias, r.features.scid_alias) = (true, false), Feature::ScidAlias),
            (|r| (r.channel_type.zero_conf, r.features.zero_conf) = (true, false), Feature::Zeroconf),
        ];
        for (change, feature) in lacking {
            assert_eq!(ask(change), Err(U::NotNegotiated(feature)));
        }
        let plain = crate::terms::CommitmentFormat::StaticRemotekey;
        assert_eq!(ask(|r| (r.channel_type.format, r.features.anchors) = (plain, false)), Ok(()));
    }

    #[test]
    fn features_are_those_of_both() {
        let ours = Features::ours(true);
        let negotiated = OpeningFeatures::negotiated(&ours, &ours);
        assert_eq!(negotiated, features());
        assert_eq!(OpeningFeatures::negotiated(&ours, &Features::empty()), OpeningFeatures::default());
        assert_eq!(OpeningFeatures::negotiated(&Features::empty(), &ours), OpeningFeatures::default());
    }
}

mod accept_channel {
    use super::*;

    #[test]
    fn channel_type_is_the_one_proposed() {
        let refused = |channel_type: Option<Features>, why: &U| {
            assert_eq!(take(no_change, |accept| accept.channel_type = channel_type), Err(why.to_string()));
        };
        let ours = ChannelType::ANCHORS.to_features();
        refused(None, &U::NoChannelType);
        for theirs in [Features::from_bits(&[12]), Features::from_bits(&[12, 22, 46]), Features::empty()] {
            refused(Some(theirs.clone()), &U::OtherChannelType { ours: ours.clone(), theirs });
        }
    }

    #[test]
    fn minimum_depth() {
        assert_eq!(take(no_change, |accept| accept.minimum_depth = 144), Ok(()));
        assert_eq!(take(no_change, |accept| accept.minimum_depth = 0), Ok(()));
        let too_large = U::DepthTooLarge { depth: 145, max: 144 }.to_string();
        assert_eq!(take(no_change, |accept| accept.minimum_depth = 145), Err(too_large));
        let zero_conf = |request: &mut OpenRequest| request.channel_type.zero_conf = true;
        assert_eq!(take(zero_conf, |_| {}), Ok(()));
        let not_zero = U::DepthOfZeroConf { depth: 1 }.to_string();
        assert_eq!(take(zero_conf, |accept| accept.minimum_depth = 1), Err(not_zero));
    }

    #[test]
    fn every_other_limit() {
        type Change = fn(&mut AcceptChannel);
        let taken: [Change; 10] = [
            |a| a.dust_limit = Sat(354),
            |a| a.dust_limit = Sat(546),
            |a| a.channel_reserve = Sat(354),
            |a| a.channel_reserve = Sat(50_000),
            |a| a.to_self_delay = 2016,
            |a| a.max_accepted_htlcs = 483,
            |a| a.max_accepted_htlcs = 1,
            |a| a.htlc_minimum = Msat(1_000_000),
            |a| a.max_htlc_value_in_flight = Msat(1_000_000),
            |a| a.upfront_shutdown_script = Some(taproot()),
        ];
        for (index, change) in taken.into_iter().enumerate() {
            assert_eq!(take(no_change, change), Ok(()), "{index}");
        }
        let refused: [(Change, U); 9] = [
            (|a| a.dust_limit = Sat(353), U::DustLimit { dust_limit: Sat(353) }),
            (|a| a.dust_limit = Sat(547), U::DustLimit { dust_limit: Sat(547) }),
            (|a| a.channel_reserve = Sat(353), U::ReserveBelowDust { reserve: Sat(353), dust_limit: Sat(354) }),
            (|a| a.channel_reserve = Sat(50_001), U::ReserveTooLarge { reserve: Sat(50_001), max: Sat(50_000) }),
            (|a| a.to_self_delay = 2017, U::DelayTooLong { delay: 2017, max: 2016 }),
            (|a| a.max_accepted_htlcs = 484, U::AcceptedHtlcs { count: 484, min: 1 }),
            (|a| a.max_accepted_htlcs = 0, U::AcceptedHtlcs { count: 0, min: 1 }),
            (
                |a| a.htlc_minimum = Msat(1_000_001),
                U::HtlcMinimumTooLarge { minimum: Msat(1_000_001), max: Msat(1_000_000) },
            ),
            (
                |a| a.max_htlc_value_in_flight = Msat(999_999),
                U::InFlightTooSmall { in_flight: Msat(999_999), min: Msat(1_000_000) },
            ),
        ];
        for (change, why) in refused {
            assert_eq!(take(no_change, change), Err(why.to_string()));
        }
        assert!(take(no_change, |a| a.upfront_shutdown_script = Some(p2pkh())).is_err());
        let other_id = take(no_change, |a| a.temporary_channel_id = ChannelId([8; 32]));
        assert!(other_id.unwrap_err().starts_with("temporary_channel_id"));
    }

    #[test]
    fn reserves_against_dust_limits_across() {
        let below = |reserve, dust| U::ReserveBelowDust { reserve: Sat(reserve), dust_limit: Sat(dust) }.to_string();
        let ours = |request: &mut OpenRequest| {
            (request.local.dust_limit, request.local.channel_reserve) = (Sat(400), Sat(500));
        };
        let with = |dust, reserve| take(ours, |a| (a.dust_limit, a.channel_reserve) = (Sat(dust), Sat(reserve)));
        assert_eq!(with(354, 400), Ok(()));
        assert_eq!(with(354, 399), Err(below(399, 400)));
        assert_eq!(with(500, 546), Ok(()));
        assert_eq!(with(501, 546), Err(below(500, 501)));
    }

    #[test]
    fn one_side_must_have_more_than_the_reserve_that_the_fundee_asks_for() {
        let ask = |request: &mut OpenRequest| {
            request.push = Msat(499_108_000);
            request.limits.reserve_percent_max = 100;
        };
        // 499,108 sat are left to the funder after 1,784 sat.
        let with = |reserve| take(ask, |accept| accept.channel_reserve = Sat(reserve));
        assert_eq!(with(499_107), Ok(()));
        let (funder, other, reserve) = (Sat(499_108), Sat(499_108), Sat(499_108));
        assert_eq!(with(499_108), Err(U::BothBelowReserve { funder, other, reserve }.to_string()));
    }
}
