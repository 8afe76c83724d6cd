//! Networks that can be solved by hand, and properties that hold for all.

use cost::{Costs, Counts, Line, Modelled, model};
use proptest::prelude::*;

/// One socket for all, where a transfer takes 100 cycles.
fn flat() -> Costs {
    Costs { cpus_per_socket: 1000, ..Costs::default() }
}

fn shared(instructions: f64, transfers: &[f64]) -> Counts {
    let lines = transfers.iter().map(|&transfers| Line { transfers, sharers: u32::MAX }).collect();
    Counts { instructions, lines, ..Counts::default() }
}

fn near(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * b.abs(), "{a} is not {b} within {tolerance}");
}

fn equal(a: f64, b: f64) {
    near(a, b, 1e-9);
}

/// Operations of all CPUs a cycle.
fn total(costs: &Costs, cpus: u32, result: &Modelled) -> f64 {
    f64::from(cpus) * result.throughput_per_cpu / costs.hertz
}

#[test]
fn without_sharing_every_cpu_is_as_fast_as_one() {
    let counts = Counts { instructions: 5000.0, hits: 100.0, ..Counts::default() };
    for cpus in [1, 2, 10, 80, 255] {
        let result = model(&Costs::default(), cpus, &counts);
        equal(result.cycles, 5400.0);
        equal(result.throughput_per_cpu, 2.4e9 / 5400.0);
        assert_eq!((result.waiting_cycles, result.busiest), (0.0, None));
    }
}

#[test]
fn few_customers_of_one_line_by_hand() {
    // Z = 900, S = 100, one visit.
    // n = 1: R = 100, C = 1000, Q = 0.1.   n = 2: R = 110, C = 1010, Q = 220/1010.   n = 3: R = 100 + 22000/1010.
    let cycles = |cpus| model(&flat(), cpus, &shared(900.0, &[1.0])).cycles;
    equal(cycles(1), 1000.0);
    equal(cycles(2), 1010.0);
    equal(cycles(3), 1000.0 + 22_000.0 / 1010.0);
    let three = model(&flat(), 3, &shared(900.0, &[1.0]));
    equal(three.waiting_cycles, 22_000.0 / 1010.0);
    equal(three.own_cycles, 900.0);
    equal(three.loads[0].residence, 100.0 + 22_000.0 / 1010.0);
    equal(three.loads[0].utilisation, 3.0 * 100.0 / three.cycles);
}

#[test]
fn a_hot_line_makes_the_curve_flat() {
    // 900 cycles of own work: the bend is at (900 + 100) / 100 = 10 CPUs.
    let curve: Vec<_> = [1, 2, 5, 40, 80]
        .map(|cpus| total(&flat(), cpus, &model(&flat(), cpus, &shared(900.0, &[1.0]))))
        .to_vec();
    equal(curve[0], 1.0 / 1000.0);
    near(curve[1], 2.0 / 1000.0, 0.02);
    near(curve[2], 5.0 / 1000.0, 0.06);
    near(curve[3], 1.0 / 100.0, 1e-6);
    near(curve[4], 1.0 / 100.0, 1e-9);
}

#[test]
fn cpus_that_only_hammer_one_line_share_its_one_rate() {
    for cpus in [1, 2, 80] {
        let result = model(&flat(), cpus, &shared(0.0, &[1.0]));
        equal(result.cycles, 100.0 * f64::from(cpus));
        equal(result.loads[0].utilisation, 1.0);
        assert_eq!(result.busiest, Some(0));
    }
    // Eight sockets of ten: of 79 others 9 are near, so S = (9 * 100 + 70 * 300) / 79.
    let costs = Costs::default();
    let result = model(&costs, 80, &shared(0.0, &[1.0]));
    equal(result.cycles, 80.0 * (9.0 * 100.0 + 70.0 * 300.0) / 79.0);
}

#[test]
fn two_equal_lines_by_hand() {
    // A balanced network of K queues and no own work: X(n) = n / (n + K - 1) / S.
    for cpus in [1, 2, 3, 80] {
        let result = model(&flat(), cpus, &shared(0.0, &[1.0, 1.0]));
        equal(total(&flat(), cpus, &result), f64::from(cpus) / f64::from(cpus + 1) / 100.0);
    }
}

#[test]
fn of_two_lines_the_one_with_more_visits_is_the_limit() {
    let counts = shared(1000.0, &[1.0, 3.0]);
    let result = model(&flat(), 80, &counts);
    near(total(&flat(), 80, &result), 1.0 / 300.0, 1e-6);
    assert_eq!(result.busiest, Some(1));
    near(result.loads[1].utilisation, 1.0, 1e-6);
    near(result.loads[0].utilisation, 1.0 / 3.0, 1e-6);
}

#[test]
fn interrupts_cost_both_sides_but_nobody_waits_for_another() {
    let counts = Counts { instructions: 4000.0, ipis_sent: 1.0, ipis_received: 1.0, ..Counts::default() };
    for cpus in [2, 80] {
        equal(model(&Costs::default(), cpus, &counts).cycles, 7000.0);
    }
    // A broadcast to all others, by all: the curve falls as 1 / N.
    let broadcast = |cpus: u32| {
        let others = f64::from(cpus - 1);
        let counts =
            Counts { instructions: 4000.0, ipis_sent: others, ipis_received: others, ..Counts::default() };
        model(&Costs::default(), cpus, &counts).cycles
    };
    equal(broadcast(1), 4000.0);
    equal(broadcast(80), 4000.0 + 79.0 * 3000.0);
}

#[test]
fn other_transfers_cost_their_price_and_no_queue() {
    let counts = Counts { instructions: 1000.0, other_transfers: 2.0, ..Counts::default() };
    equal(model(&Costs::default(), 10, &counts).cycles, 1200.0);
    // 20 CPUs on two sockets: of 19 others 9 are near.
    equal(model(&Costs::default(), 20, &counts).cycles, 1000.0 + 2.0 * (9.0 * 100.0 + 10.0 * 300.0) / 19.0);
}

#[test]
fn a_transfer_costs_what_its_sharers_are_apart() {
    let costs = Costs::default();
    for near in [0, 1, 2, 10] {
        equal(costs.transfer(near), 100.0);
    }
    // Eleven: ten on one socket, 10 * 9 of 11 * 10 ordered pairs.
    equal(costs.transfer(11), (90.0 * 100.0 + 20.0 * 300.0) / 110.0);
    // Where every CPU is a socket, every transfer crosses.
    equal(Costs { cpus_per_socket: 1, ..costs }.transfer(80), 300.0);
}

#[test]
fn a_group_that_shares_a_line_is_slowed_as_if_it_were_alone() {
    let mut worst: f64 = 0.0;
    for (sharers, factor) in [2, 4, 8, 16, 40].into_iter().flat_map(|s| [2, 4, 10].map(|f| (s, f))) {
        for instructions in [0.0, 100.0, 300.0, 1000.0, 4000.0, 20_000.0] {
            for transfers in [0.1, 1.0, 5.0] {
                let lines = vec![Line { transfers, sharers }];
                let counts = Counts { instructions, lines, ..Counts::default() };
                let alone = model(&flat(), sharers, &counts).cycles;
                let among = model(&flat(), sharers * factor, &counts).cycles;
                assert!(among >= alone * (1.0 - 1e-9));
                worst = worst.max(among / alone - 1.0);
            }
        }
    }
    // What the crate's head promises, and the extension is not exact.
    assert!((0.01..0.07).contains(&worst), "{worst}");
}

#[test]
fn nothing_to_do_is_no_throughput_rather_than_an_infinite_one() {
    let result = model(&Costs::default(), 0, &Counts::default());
    assert_eq!((result.cycles, result.throughput_per_cpu, result.busiest), (0.0, 0.0, None));
}

fn some_counts() -> impl Strategy<Value = Counts> {
    let line = (0.0..50.0, 1u32..300).prop_map(|(transfers, sharers)| Line { transfers, sharers });
    (1.0..100_000.0, proptest::collection::vec(line, 0..6), 0.0..100.0, 0.0..80.0).prop_map(
        |(instructions, lines, other_transfers, ipis)| Counts {
            instructions,
            lines,
            other_transfers,
            ipis_sent: ipis,
            ipis_received: ipis,
            ..Counts::default()
        },
    )
}

proptest! {
    #[test]
    fn no_result_breaks_a_bound(counts in some_counts(), cpus in 1u32..256, per_socket in 1u32..64) {
        let costs = Costs { cpus_per_socket: per_socket, ..Costs::default() };
        let result = model(&costs, cpus, &counts);
        let service: f64 = counts.lines.iter().zip(&result.loads).map(|(l, load)| l.transfers * load.service).sum();
        // Cycles are own work, moving and waiting, and nobody is served before its transfer has taken its time.
        let parts = result.own_cycles + service + result.waiting_cycles;
        prop_assert!((result.cycles - parts).abs() <= 1e-9 * parts);
        prop_assert!(result.waiting_cycles >= -1e-6);
        // Little's law, line by line: a line is never busier than always, and no CPU waits for more than the others.
        for load in &result.loads {
            prop_assert!(load.utilisation <= 1.0 + 1e-9, "{load:?}");
            prop_assert!(load.residence <= load.service * f64::from(cpus) * (1.0 + 1e-9));
        }
    }

    #[test]
    fn more_cpus_never_make_an_operation_faster(instructions in 0.0..10_000.0f64, transfers in 0.01..10.0f64) {
        let counts = shared(instructions, &[transfers, transfers / 2.0]);
        let cycles: Vec<_> = (1..100).map(|cpus| model(&flat(), cpus, &counts).cycles).collect();
        prop_assert!(cycles.windows(2).all(|pair| pair[1] >= pair[0] * (1.0 - 1e-12)));
        // Nor do they make all of them together slower, where a transfer's price stays the same.
        let rates: Vec<_> = cycles.iter().enumerate().map(|(i, c)| (i + 1) as f64 / c).collect();
        prop_assert!(rates.windows(2).all(|pair| pair[1] >= pair[0] * (1.0 - 1e-12)));
    }
}
