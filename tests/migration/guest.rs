//! The minimal guest at work: it fills memory whose sum it tells, and writes to its disk what it reads again.

use crate::qemu::{BOOT_DEADLINE, DEADLINE, Qemu, Serial};

/// Fills memory, and tells its sum. The words are put together by the shell, so that they are not found in its echo.
const FILL: &str = "dd if=/dev/urandom of=/memory bs=1M count=12 2>/dev/null";
const SUM: &str = r#"s=$(sha256sum </memory); echo "SUM""-${s%% *}""#;
/// Writes to the disk, reads it again past the page cache, and so on.
const WRITE: &str = r#"d=$(ls /dev/[sv]da3); (n=0; while dd if=/dev/urandom of=/w bs=4k count=64 2>/dev/null
dd if=/w of=$d bs=4k seek=300 conv=notrunc,fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
dd if=$d bs=4k skip=300 count=64 2>/dev/null | cmp -s - /w; do n=$((n+1)); echo "WROTE""-$n."; done; echo "LOST""-IT") &"#;

pub(crate) struct Guest {
    pub(crate) qemu: Qemu,
    pub(crate) serial: Serial,
}

/// What a guest has done.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ticks: u64,
    pub(crate) sum: String,
}

impl Guest {
    pub(crate) fn new(qemu: Qemu) -> Self {
        Self { serial: qemu.serial.clone(), qemu }
    }

    /// Waits for the boot, and sets the guest to work.
    pub(crate) fn work(&mut self) -> State {
        self.serial.wait_for("a tick", BOOT_DEADLINE, last_tick);
        self.serial.type_line(FILL);
        let sum = self.sum();
        self.serial.type_line(WRITE);
        self.wait_for_writes();
        State { ticks: 0, sum }
    }

    /// Its memory is as it was, and it still reads what it writes.
    pub(crate) fn check(&mut self, before: &State) {
        assert_eq!(self.sum(), before.sum);
        self.wait_for_writes();
        assert!(!self.serial.text().contains("LOST-IT"), "{}", self.serial.text());
        self.qemu.qmp.execute("quit", &serde_json::json!({}));
        self.qemu.exited();
    }

    fn sum(&self) -> String {
        self.serial.type_line(SUM);
        self.serial.wait_for("a sum", DEADLINE, |text| after(text, "SUM-").filter(|sum| sum.len() == 64))
    }

    /// Waits for two more rounds than there were.
    fn wait_for_writes(&self) {
        let count = |text: &str| text.matches("WROTE-").count();
        let before = count(&self.serial.text());
        self.serial.wait_for("writing", DEADLINE, |text| (count(text) >= before + 2).then_some(()));
    }
}

/// The number of the last tick that was told whole.
pub(crate) fn last_tick(text: &str) -> Option<u64> {
    let told = text.rfind('\n').and_then(|end| text.get(..end))?;
    after(told, "VMNETX-TICK ")?.parse().ok()
}

/// The word that follows the last of these.
fn after(text: &str, what: &str) -> Option<String> {
    let (_, rest) = text.rsplit_once(what)?;
    Some(rest.chars().take_while(char::is_ascii_alphanumeric).collect())
}
