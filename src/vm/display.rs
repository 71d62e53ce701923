//! Where the guest's screen is shown.

use super::error::Error;
use super::process::{Programs, run_tool};

/// The screen that the user asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DisplayChoice {
    /// A window where there is a desktop and QEMU can draw on it, else none.
    #[default]
    Auto,
    /// This one.
    Fixed(Display),
}

/// Where the screen is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Display {
    /// Nowhere.
    None,
    /// In a GTK window.
    Gtk,
    /// In an SDL window.
    Sdl,
    /// To VNC viewers on a Unix socket in the run's directory.
    Vnc,
}

impl DisplayChoice {
    /// Decides, and tells the log why.
    ///
    /// # Errors
    /// When QEMU cannot be asked what it has.
    pub async fn resolve(self, programs: &Programs) -> Result<Display, Error> {
        if let Self::Fixed(display) = self {
            return Ok(display);
        }
        let desktop = ["WAYLAND_DISPLAY", "DISPLAY"];
        let desktop = desktop.into_iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        let Some(desktop) = desktop else {
            tracing::debug!("no screen is shown: neither WAYLAND_DISPLAY nor DISPLAY is set");
            return Ok(Display::None);
        };
        let help = run_tool("ask QEMU for its displays", &programs.qemu, &["-display".into(), "help".into()]).await?;
        let display = best(&String::from_utf8_lossy(&help));
        if display == Display::None {
            tracing::warn!("no screen is shown: {desktop} is set, but this QEMU has neither GTK nor SDL");
        }
        Ok(display)
    }
}

/// The best display in the list that QEMU prints, one to a line.
fn best(help: &str) -> Display {
    let has = |name: &str| help.lines().any(|line| line.trim() == name);
    match (has("gtk"), has("sdl")) {
        (true, _) => Display::Gtk,
        (false, true) => Display::Sdl,
        (false, false) => Display::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_better_than_none() {
        assert_eq!(best("Available display backend types:\nnone\ngtk\nsdl\n"), Display::Gtk);
        assert_eq!(best("Available display backend types:\nnone\nsdl\n"), Display::Sdl);
        assert_eq!(best("Available display backend types:\nnone\negl-headless\n"), Display::None);
    }

    #[tokio::test]
    async fn qemu_says_what_it_has() {
        let programs = Programs::find(std::path::Path::new("qemu-system-x86_64")).unwrap();
        let help = run_tool("ask", &programs.qemu, &["-display".into(), "help".into()]).await.unwrap();
        assert!(String::from_utf8(help).unwrap().lines().any(|line| line.trim() == "none"));
    }
}
