//! What a shell and `man` want: completions and manual pages, made from the commands themselves.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::fault::Fault;
use crate::output::Output;

/// Print completions for a shell
///
/// Examples:
///   millrace completions bash > ~/.local/share/bash-completion/completions/millrace
///   millrace completions zsh > "${fpath[1]}/_millrace"
///   millrace completions fish > ~/.config/fish/completions/millrace.fish
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub(crate) fn run(&self, output: &mut Output) -> Result<(), Fault> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "millrace", &mut script);
        output.write(&script)
    }
}

/// Write the manual pages, one per command, into a folder; without one, the first page to standard output
#[derive(Args)]
pub(crate) struct Man {
    /// Folder for the pages
    folder: Option<PathBuf>,
}

impl Man {
    /// Writes the pages.
    pub(crate) fn run(&self, output: &mut Output) -> Result<(), Fault> {
        let Some(folder) = &self.folder else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(|source| Fault::Io { what: "manual page".to_owned(), source })?;
            return output.write(&page);
        };
        clap_mangen::generate_to(Cli::command(), folder)
            .map_err(|source| Fault::Io { what: folder.display().to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }
}
