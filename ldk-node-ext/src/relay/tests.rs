//! The machine of one relay against a model of LDK, a client that does as it likes, and crashes between any two lines.
//!
//! The model is that of LDK with deferred monitors: what it does leaves the process once it is written, and after a
//! crash it is what was written last, while the relay's own record is always the newest. Nobody may be out of pocket:
//! the client is paid once at most, and only if the LSP will be; and what is not paid on goes back.

use lightning::types::payment::PaymentPreimage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::budget::{self, Budget, LATE, LDK_EXTRA, SETTLE};
use super::record::{Act, Bytes, Incoming, Input, Relay, State, Terms};

const PREIMAGE: PaymentPreimage = PaymentPreimage([7; 32]);
const BORN: u32 = 1000;

fn terms() -> Terms {
    let secret = bitcoin::secp256k1::SecretKey::from_slice(&[3; 32]).unwrap();
    let client = secret.public_key(&bitcoin::secp256k1::Secp256k1::new());
    let secret = Bytes([9; 32]);
    Terms {
        client,
        secret,
        amount_msat: 250_000_000,
        fee_msat: 250_000,
        outgoing: plan().outgoing,
        lapses_at: 10,
        moved: None,
    }
}

fn plan() -> Budget {
    budget::plan(360, 324, 0, 4).unwrap()
}

fn incoming(id: u8) -> Incoming {
    let claim_by = BORN + u32::from(plan().room) - 39;
    Incoming { id: Bytes([id; 32]), msat: 250_250_000, claim_by, until: 60 }
}

fn arrives(id: u8) -> Input<'static> {
    Input::Arrived { incoming: incoming(id), height: BORN, against: None }
}

fn look(height: u32, now: u64) -> Input<'static> {
    Input::Look { height, now, known: false, there: true, ready: true }
}

fn relay(steps: &[Input<'_>]) -> Relay {
    let mut relay = Relay::new(terms(), 0);
    for step in steps {
        relay.step(*step);
    }
    relay
}

fn failed(act: Act) -> String {
    let Act::GiveBack(reason) = act else { panic!("{act:?}") };
    reason
}

#[test]
fn the_straight_way_and_every_event_twice() {
    let mut relay = Relay::new(terms(), 0);
    assert_eq!(relay.step(arrives(1)), Act::Hold);
    assert_eq!(relay.step(arrives(1)), Act::Nothing);
    assert_eq!(relay.step(look(BORN, 1)), Act::Pay);
    assert_eq!(relay.step(look(BORN, 1)), Act::Nothing);
    for _ in 0..2 {
        assert_eq!(relay.step(Input::Sent(PREIMAGE)), Act::Claim(PREIMAGE));
    }
    // before LDK says that it is ours: nothing but claiming
    for input in [arrives(1), arrives(2), Input::Started { known: true }, Input::Started { known: false }] {
        assert_eq!(relay.step(input), Act::Claim(PREIMAGE), "{input:?}");
    }
    assert_eq!(relay.state, State::Preimage { preimage: Bytes(PREIMAGE.0) });
    relay.step(Input::Claimed);
    assert_eq!(relay.state, State::Done { preimage: Bytes(PREIMAGE.0) });
    // all of it again, as after a restart from an older state of LDK
    assert_eq!(relay.step(arrives(1)), Act::Claim(PREIMAGE));
    assert_eq!(relay.step(Input::Sent(PREIMAGE)), Act::Claim(PREIMAGE));
    let late = Input::NotSent { known: false, reason: "stale" };
    assert_eq!(relay.step(late), Act::Claim(PREIMAGE), "a stored preimage beats it");
    assert_eq!(relay.state, State::Done { preimage: Bytes(PREIMAGE.0) });
    assert_eq!(failed(relay.step(arrives(2))), "the invoice was paid before");
}

#[test]
fn what_does_not_fit_is_given_back_and_the_invoice_stays_open() {
    let mut open = Relay::new(terms(), 0);
    let all = incoming(1);
    let last = budget::last_send(all.claim_by, plan().outgoing).unwrap();
    let at = |height, incoming, deep: bool| {
        let against = (!deep).then_some("not deep");
        Input::Arrived { incoming, height, against }
    };
    assert!(failed(open.step(at(BORN, Incoming { msat: all.msat - 1, ..all }, true))).contains("less"));
    assert!(failed(open.step(at(last + 1, all, true))).contains("few blocks"));
    assert!(failed(open.step(at(BORN, all, false))).contains("not deep"));
    assert!(failed(open.step(at(BORN, Incoming { claim_by: 5, ..all }, true))).contains("few blocks"));
    assert_eq!(open.state, State::Offered);
    assert_eq!(open.step(at(last, all, true)), Act::Hold);
}

#[test]
fn what_was_agreed_on_has_to_do_for_the_channels_of_the_day() {
    let terms = relay(&[]).terms;
    let most = terms.outgoing - budget::SLACK;
    assert!(terms.suffices(0) && terms.suffices(most));
    assert!(!terms.suffices(most + 1) && !terms.suffices(u32::MAX));
}

#[test]
fn a_held_one_is_paid_on_in_time_or_given_back_for_good() {
    let last = budget::last_send(incoming(1).claim_by, plan().outgoing).unwrap();
    let held = || relay(&[arrives(1)]);
    assert_eq!(held().step(look(last, 59)), Act::Pay);
    assert!(failed(held().step(look(last + 1, 59))).contains("few blocks"));
    assert!(failed(held().step(look(last, 60))).contains("not there in time"));
    let gone = Input::Look { height: BORN, now: 1, known: false, there: false, ready: true };
    assert!(failed(held().step(gone)).contains("gone"));
    let no_room = Input::NoRoom { reason: "no room" };
    assert_eq!(failed(held().step(no_room)), "no room");
    // What is out already is not called back by that.
    assert_eq!(relay(&[arrives(1), look(BORN, 1)]).step(no_room), Act::Nothing);
    let away = Input::Look { height: BORN, now: 1, known: false, there: true, ready: false };
    let mut relay = held();
    assert_eq!((relay.step(away), relay.state.clone()), (Act::Nothing, State::Held));
    failed(relay.step(look(BORN, 60)));
    failed(relay.step(arrives(1)));
    failed(relay.step(arrives(2)));
    assert_eq!(relay.step(look(BORN, 1)), Act::Nothing);
    failed(relay.step(Input::Started { known: false }));
}

#[test]
fn of_two_tries_the_end_of_the_first_is_not_the_end_of_the_second() {
    let mut relay = relay(&[arrives(1), look(BORN, 1), Input::Started { known: false }]);
    assert_eq!(relay.state, State::Held);
    assert_eq!(relay.step(look(BORN, 1)), Act::Pay);
    let of_the_first = Input::NotSent { known: true, reason: "stale" };
    assert_eq!((relay.step(of_the_first), relay.state.clone()), (Act::Nothing, State::Paying));
    let of_the_second = Input::NotSent { known: false, reason: "no" };
    assert_eq!(failed(relay.step(of_the_second)), "no");
    // One that comes late all the same is not lost.
    assert_eq!(relay.step(Input::Sent(PREIMAGE)), Act::Claim(PREIMAGE));
}

#[test]
fn a_refused_try_goes_on_waiting_unless_it_would_be_refused_again() {
    let paying = || relay(&[arrives(1), look(BORN, 1)]);
    let mut one = paying();
    one.step(Input::Refused { final_word: false, reason: "no route" });
    assert_eq!(one.step(look(BORN, 2)), Act::Pay);
    one.step(Input::Refused { final_word: false, reason: "no route" });
    let known = Input::Look { height: BORN, now: 2, known: true, there: true, ready: true };
    assert_eq!((one.step(known), one.state), (Act::Nothing, State::Paying), "LDK has one: not again");
    assert_eq!(failed(paying().step(Input::Refused { final_word: true, reason: "never" })), "never");
}

#[test]
fn records_read_back_as_they_were_written() {
    for steps in
        [vec![], vec![arrives(1)], vec![arrives(1), Input::Sent(PREIMAGE)], vec![arrives(1), look(BORN, 99)]]
    {
        let relay = relay(&steps);
        let text = serde_json::to_string(&relay).unwrap();
        assert_eq!(serde_json::from_str::<Relay>(&text).unwrap(), relay, "{text}");
    }
}

/// What LDK says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Arrived(u8),
    Sent,
    NotSent,
    Claimed,
}

/// LDK's side of the incoming payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    Nothing,
    Claimable(u8),
    Claimed,
    GivenBack,
}

/// LDK's side of the outgoing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    Nothing,
    /// Not written yet, so it has not left.
    Queued(u32),
    /// Expires at this height.
    Gone(u32),
    Settled,
}

#[derive(Clone, Debug)]
struct Ldk {
    incoming: In,
    out: Out,
    events: Vec<Event>,
}

struct Model {
    relay: Relay,
    ldk: Ldk,
    disk: Ldk,
    height: u32,
    now: u64,
    /// The client has what it can settle or fail: until this height, or it has failed it.
    at_client: Option<u32>,
    client_paid: u32,
    client_failed: bool,
    lsp_paid: bool,
    refunded: bool,
    tries: u8,
}

impl Model {
    fn new() -> Self {
        let ldk = Ldk { incoming: In::Nothing, out: Out::Nothing, events: vec![] };
        Self {
            relay: Relay::new(terms(), 0),
            disk: ldk.clone(),
            ldk,
            height: BORN,
            now: 0,
            at_client: None,
            client_paid: 0,
            client_failed: false,
            lsp_paid: false,
            refunded: false,
            tries: 0,
        }
    }

    fn known(&self) -> bool {
        self.ldk.out != Out::Nothing
    }

    /// LDK writes its state, and what waited for that leaves.
    fn write(&mut self) {
        if let Out::Queued(expiry) = self.ldk.out {
            self.ldk.out = Out::Gone(expiry);
            assert!(self.at_client.is_none(), "two payments are out at once");
            self.at_client = Some(expiry);
            self.client_failed = false;
        }
        self.lsp_paid |= self.ldk.incoming == In::Claimed;
        self.refunded |= self.ldk.incoming == In::GivenBack;
        self.disk = self.ldk.clone();
    }

    fn crash(&mut self) {
        self.ldk = self.disk.clone();
        // The HTLCs are on the channel, whatever LDK remembered of them.
        if self.ldk.incoming == In::Nothing && self.tries > 0 {
            self.arrive();
        }
        let act = self.relay.step(Input::Started { known: self.known() });
        self.act(act);
    }

    fn arrive(&mut self) {
        self.ldk.incoming = In::Claimable(self.tries);
        self.ldk.events.push(Event::Arrived(self.tries));
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Nothing | Act::Hold => {}
            Act::Pay if self.known() => {} // DuplicatePayment
            Act::Pay => {
                let late = self.now as u32 % (LATE + 1);
                self.ldk.out = Out::Queued(self.height + late + plan().outgoing + LDK_EXTRA);
            }
            Act::Claim(_) => {
                if matches!(self.ldk.incoming, In::Claimable(_)) {
                    self.ldk.incoming = In::Claimed;
                    self.ldk.events.push(Event::Claimed);
                }
            }
            Act::GiveBack(_) => {
                if matches!(self.ldk.incoming, In::Claimable(_)) {
                    self.ldk.incoming = In::GivenBack;
                }
            }
        }
    }

    /// Handles LDK's next event; `dies` before or after it is carried out.
    fn event(&mut self, dies: Option<bool>) {
        let Some(event) = self.ldk.events.first().copied() else { return };
        let reason = "no";
        let input = match event {
            Event::Arrived(id) => {
                Input::Arrived { incoming: incoming(id), height: self.height, against: None }
            }
            Event::Sent => Input::Sent(PREIMAGE),
            Event::NotSent => Input::NotSent { known: self.known(), reason },
            Event::Claimed => Input::Claimed,
        };
        let act = self.relay.step(input);
        if dies == Some(false) {
            return self.crash();
        }
        self.act(act);
        if dies == Some(true) {
            return self.crash();
        }
        self.ldk.events.remove(0);
    }

    /// What the client has said before is said again if LDK does not know it.
    fn client_speaks(&mut self, pays: bool) {
        let Out::Gone(_) = self.ldk.out else { return };
        let Some(expiry) = self.at_client else { return };
        if self.client_paid == 0 && !self.client_failed {
            if pays && self.height < expiry + SETTLE {
                self.client_paid += 1;
            } else {
                self.client_failed = true;
            }
        }
        if self.client_paid > 0 {
            self.ldk.out = Out::Settled;
            self.ldk.events.push(Event::Sent);
        } else {
            self.ldk.out = Out::Nothing;
            self.ldk.events.push(Event::NotSent);
            self.at_client = None;
        }
    }

    fn block(&mut self) {
        // What is out is over that long after its expiry, by the chain.
        if self.at_client.is_some_and(|expiry| self.height + 1 >= expiry + SETTLE) {
            self.client_speaks(false);
            while !self.ldk.events.is_empty() {
                self.event(None);
            }
            self.write();
        }
        self.height += 1;
        if matches!(self.ldk.incoming, In::Claimable(_)) && self.height >= incoming(1).claim_by {
            self.ldk.incoming = In::GivenBack;
        }
    }

    fn random(&mut self, rng: &mut StdRng) {
        match rng.random_range(0..100) {
            0..8 if self.tries == 0 || (self.refunded && self.tries < 3) => {
                self.tries += 1;
                self.refunded = false;
                self.arrive();
            }
            8..30 => {
                let dies = rng.random_bool(0.2).then(|| rng.random_bool(0.5));
                self.event(dies);
            }
            30..50 => {
                let there = self.tries > 0 && matches!(self.ldk.incoming, In::Claimable(_));
                let (height, now, known, ready) = (self.height, self.now, self.known(), rng.random_bool(0.7));
                let act = self.relay.step(Input::Look { height, now, known, there, ready });
                match rng.random_range(0..10) {
                    0 => return self.crash(),
                    // LDK looks for a route first: so it may say also of one that is out.
                    1 if act == Act::Pay => {
                        let refused = Input::Refused { final_word: rng.random_bool(0.2), reason: "no" };
                        let act = self.relay.step(refused);
                        self.act(act);
                    }
                    _ => self.act(act),
                }
            }
            50..70 => self.write(),
            70..80 => self.client_speaks(rng.random_bool(0.6)),
            80..84 => self.crash(),
            84..90 => (0..rng.random_range(1..150)).for_each(|_| self.block()),
            90..95 => self.now += rng.random_range(0..30),
            // LDK forgets a payment that it has said everything about.
            95..98 if self.ldk.out == Out::Settled && !self.ldk.events.contains(&Event::Sent) => {
                self.ldk.out = Out::Nothing;
            }
            _ => {}
        }
        assert!(self.client_paid <= 1);
        assert!(!(self.client_paid > 0 && self.refunded), "the LSP has lost: {:?}", self.relay);
    }

    /// Everything that can come to an end does.
    fn finish(&mut self) {
        for _ in 0..3000 {
            self.write();
            self.event(None);
            let there = matches!(self.ldk.incoming, In::Claimable(_));
            let (height, now, known) = (self.height, self.now, self.known());
            let act = self.relay.step(Input::Look { height, now, known, there, ready: false });
            self.act(act);
            self.now += 1;
            self.block();
        }
        self.write();
        assert!(!(self.client_paid > 0 && self.refunded), "the LSP has lost: {:?}", self.relay);
        assert_eq!(self.client_paid > 0, self.lsp_paid, "{:?} {:?}", self.relay, self.ldk);
        assert!(self.tries == 0 || self.lsp_paid != self.refunded, "{:?} {:?}", self.relay, self.ldk);
    }
}

#[test]
fn nobody_is_out_of_pocket_whatever_happens_in_whichever_order() {
    let (mut paid, mut refunded) = (0, 0);
    for seed in 0..4000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Model::new();
        for _ in 0..rng.random_range(10..120) {
            model.random(&mut rng);
        }
        model.finish();
        paid += u32::from(model.lsp_paid);
        refunded += u32::from(model.refunded);
    }
    assert!(paid > 400 && refunded > 400, "the model does not reach both ends: {paid} {refunded}");
}
