//! Guests that go on from one saved state: each is told that it is a copy, and has the time of day.

use std::time::SystemTime;

use serde_json::json;

use super::monitor::Monitor;
use super::*;

const MACHINE: &str = "machine = 'pc-i440fx-7.2'\nmemory_mib = 256\nvga = 'none'\nrng = true\nvmgenid = true\nguest_agent = true\n\
    cpu.model = 'Nehalem'\n";

/// When the guest believes that it was saved.
const LONG_AGO_S: u64 = 981_173_100;

/// Two clocks that differ by less tell the same time, on a host as busy as this.
const SAME_TIME: Duration = Duration::from_secs(20);

/// Tells where the guest's own description of its hardware (`VGIA` in an ACPI table) says that the identity of this copy is.
const ADDRESS: &str = r#"a=$(cat /sys/firmware/acpi/tables/SSDT* | xxd -p | tr -d '\n' | sed 's/.*564749410c\(........\).*/\1/')
echo "ADDRESS""-$((0x$(echo $a | sed 's/\(..\)\(..\)\(..\)\(..\)/\4\3\2\1/')))..""#;

/// The general-purpose event by which the guest is told of another identity, and how often it has been.
const TOLD: &str = r#"echo "TOLD""-$(sed 's/ *\([0-9]*\).*/\1/' /sys/firmware/acpi/interrupts/gpe05)..""#;

impl Running {
    /// Types a command that prints `word`, a minus, a number and two dots.
    fn number(&mut self, command: &str, word: &str) -> u64 {
        let spoken = |serial: &Path| String::from_utf8_lossy(&fs::read(serial).unwrap()).into_owned();
        let asked = spoken(&self.serial).len();
        self.type_line(command);
        let started = Instant::now();
        loop {
            let said = spoken(&self.serial);
            let answer = said.get(asked..).unwrap_or_default().split_once(&format!("{word}-"));
            if let Some((number, _)) = answer.and_then(|(_, rest)| rest.split_once("..")) {
                return number.parse().unwrap_or_else(|_| panic!("{number}"));
            }
            assert!(started.elapsed() < DEADLINE, "no {word}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn clock_s(&mut self) -> u64 {
        self.number(r#"echo "CLOCK""-$(date +%s)..""#, "CLOCK")
    }
}

impl Monitor {
    /// The identity that QEMU has given this copy, and what its guest reads at `address`, both as digits.
    fn identities(&mut self, address: u64) -> [String; 2] {
        let given = self.ask("query-vm-generation-id", &json!({}))["guid"].as_str().unwrap().replace('-', "");
        let command = json!({ "command-line": format!("xp /16xb {}", address + 40) });
        let dump = self.ask("human-monitor-command", &command);
        let bytes: Vec<_> =
            dump.as_str().unwrap().split_whitespace().filter_map(|word| word.strip_prefix("0x")).collect();
        // The first three fields of a GUID have their lowest byte first.
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        [given, order.map(|place| bytes[place]).concat()]
    }
}

#[test]
fn copies_of_a_guest_know_that_they_are_and_what_time_it_is() {
    let bench = Bench::new("twins", &["vmnetx.tick=0.05", "vmnetx.agent"]);
    let machine = bench.path("machine.toml");
    fs::write(&machine, MACHINE).unwrap();
    bench.publish_with(&["--machine".as_ref(), machine.as_ref()]);
    let mut running = bench.start_ticking();
    running.number(&format!(r#"date -s @{LONG_AGO_S} >/dev/null; echo "SET""-1..""#), "SET");
    assert!(running.clock_s() - LONG_AGO_S < SAME_TIME.as_secs());
    let (address, told) = (running.number(ADDRESS, "ADDRESS"), running.number(TOLD, "TOLD"));
    let [saved, seen] = Monitor::of(&bench, "guest").identities(address);
    assert_eq!(saved, seen);
    let output = finish(bench.capture("guest", &["--yes", "--stop"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());

    let mut known = vec![saved];
    for mode in ["lazy", "stream", "mapped"] {
        let mut copy = bench.start_with(mode, &bench.link(), &["--resume", mode, "--name", mode]);
        copy.wait_for("the guest's clock is set", DEADLINE);
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(copy.clock_s().abs_diff(now_s) < SAME_TIME.as_secs(), "{mode}");
        assert!(copy.number(TOLD, "TOLD") > told, "{mode}: its guest is told");
        let [given, seen] = Monitor::of(&bench, mode).identities(address);
        assert_eq!(given, seen, "{mode}");
        assert!(!known.contains(&given), "{mode}: {given} is another's");
        known.push(given);
        copy.type_line("poweroff");
        assert_eq!(copy.ended(DEADLINE).code(), Some(0), "{}", copy.said());
    }
    bench.assert_clean();
}
