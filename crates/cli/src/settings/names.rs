//! Names in a file that are no settings: mistyped, another library's, of what is not computed, or somebody else's.
//!
//! The settings of an .npz file are ours alone, and so is what starts with `signflash`: every name there must be known,
//! or be called a note.
//! The metadata of a .safetensors file belongs to everybody. There a name is refused if it says what one of our
//! settings says, or nearly, or sets what would change the result and is not computed; other names are noted. Tensors
//! are judged like that, too: `np.savez(..., dropout_p=0.1)` stores an array.

use super::{Metadata, Overrides, SETTINGS, Setting, flag};
use crate::errors::Error;
use crate::files::{Archive, Format, listing, npz, printable};
use crate::joined::JOINED;
use crate::packed::CU_SEQLENS;
use strsim::damerau_levenshtein;

/// Who wrote a file; results carry it.
pub(super) const WRITTEN_BY: &str = "written_by";
/// What people write about a file; it may stand anywhere.
const NOTES: [&str; 4] = ["note", "comment", "description", "source"];
/// What libraries that write .safetensors put there.
const FRAMEWORK: &str = "format";
/// Tensors that some subcommand reads or writes.
const TENSORS: [&str; 20] = [
    "q",
    "k",
    "v",
    "dout",
    "dlse",
    CU_SEQLENS[0],
    CU_SEQLENS[1],
    JOINED[0],
    JOINED[1],
    JOINED[2],
    JOINED[3],
    "out",
    "lse",
    "dq",
    "dk",
    "dv",
    "dbias",
    "dsinks",
    "probs",
    "signbit",
];

/// What changes the result and is not computed, as [`plain`] spells it.
const NOT_COMPUTED: [&str; 2] = ["sequsedk", "blocktable"];
/// What others call tensors of ours, or what says that there are some, as [`plain`] spells it; and our name.
const JOINED_ELSEWHERE: [(&str, &str); 15] = [
    ("alibi", "alibi_slopes"),
    ("alibislopes", "alibi_slopes"),
    ("bias", "bias"),
    ("attnbias", "bias"),
    ("attentionbias", "bias"),
    ("positionbias", "bias"),
    ("mask", "mask"),
    ("attnmask", "mask"),
    ("attentionmask", "mask"),
    ("keypaddingmask", "mask"),
    ("paddingmask", "mask"),
    ("blockmask", "mask"),
    ("sink", "sinks"),
    ("sinks", "sinks"),
    ("saux", "sinks"),
];

/// What a name is to us.
enum Kind {
    Known,
    /// This setting in other words, or mistyped.
    Like(&'static Setting),
    NotComputed,
    /// A tensor of ours.
    CuSeqlens,
    /// Another one, by this name.
    Joined(&'static str),
    Foreign,
}

/// Judges every name in a file.
///
/// # Errors
/// [`Error::UnknownSetting`].
pub(super) fn judge(archive: &Archive, format: Format, given: &Overrides) -> Result<(), Error> {
    for (key, value) in &archive.metadata {
        let ours = format == Format::Npz || key.to_lowercase().starts_with("signflash");
        match kind_of(key) {
            Kind::Known => {}
            Kind::Like(setting)
                if (setting.is_given)(given) || repeats(&archive.metadata, setting, value) => {}
            Kind::Like(setting) => return Err(mistaken(key, value, setting.name, &archive.metadata)),
            Kind::NotComputed | Kind::Joined(_) if is_neutral(value) => {}
            Kind::Joined(name) => {
                let what =
                    format!("metadata `{}` is {:?}, and no setting says that", printable(key), short(value));
                return Err(refuse(what, &format!("store the tensor {name} beside q, or remove it")));
            }
            Kind::NotComputed => {
                let what =
                    format!("metadata `{}` is {:?}, which is not computed", printable(key), short(value));
                return Err(refuse(what, "remove it if the result without it is what you want"));
            }
            Kind::CuSeqlens => {
                let what = format!("metadata `{}` has the name of a tensor", printable(key));
                let remedy = format!("store {} as tensors beside q, or remove it", CU_SEQLENS.join(" and "));
                return Err(refuse(what, &remedy));
            }
            Kind::Foreign if format == Format::Npz && key == npz::DTYPE => dtype(archive, value)?,
            Kind::Foreign if ours && !NOTES.contains(&key.as_str()) => {
                let what = format!("metadata `{}` is no setting; expected {}", printable(key), names());
                return Err(refuse(what, "correct or remove it; a remark may be called `note`"));
            }
            Kind::Foreign => {}
        }
    }
    archive.present.iter().filter(|name| !TENSORS.contains(&name.as_str())).try_for_each(|name| tensor(name))
}

/// What a file holds and nobody reads, as a line; none if all has a use.
pub(super) fn note(archive: &Archive, format: Format) -> Option<String> {
    let unused = |name: &&String| matches!(kind_of(name), Kind::Foreign);
    let tensors: Vec<_> = archive.present.iter().filter(|name| !TENSORS.contains(&name.as_str())).collect();
    let metadata = archive.metadata.keys().filter(unused);
    let metadata: Vec<_> =
        metadata.filter(|key| *key != FRAMEWORK && !(format == Format::Npz && *key == npz::DTYPE)).collect();
    let lists = [("metadata", metadata), ("tensors", tensors)];
    let lists = lists.into_iter().filter(|(_, names)| !names.is_empty());
    let text: Vec<_> = lists.map(|(what, names)| format!("{what} {}", listing(&names))).collect();
    (!text.is_empty()).then(|| format!("not used: {}\n", text.join("; ")))
}

/// A tensor that bears the name of a setting, or of an operand that is not computed.
fn tensor(name: &str) -> Result<(), Error> {
    let word = plain(name);
    let shown = printable(name);
    if SETTINGS.iter().any(|setting| plain(setting.name) == word) || said_otherwise(&word).is_some() {
        let what = format!("tensor `{shown}` has the name of a setting, and tensors are no settings");
        return Err(refuse(
            what,
            "put it into the metadata (.npz: the entry `settings`, a JSON object), or rename it",
        ));
    }
    if let Some(name) = joined_elsewhere(&word) {
        let what = format!("tensor `{shown}` is no operand; expected `{name}`");
        return Err(refuse(
            what,
            "rename it if it is that (a mask is not 0 where a key is seen), or remove it",
        ));
    }
    if NOT_COMPUTED.contains(&word.as_str()) {
        let what = format!("tensor `{shown}` is an operand that is not computed");
        return Err(refuse(what, "remove or rename it if the result without it is what you want"));
    }
    if is_like_cu_seqlens(&word) {
        let what = format!("tensor `{shown}` is no operand; expected {}", CU_SEQLENS.join(" and "));
        return Err(refuse(what, "rename it; where queries and keys have the same lengths, store it twice"));
    }
    Ok(())
}

fn refuse(what: String, remedy: &str) -> Error {
    Error::UnknownSetting { what, remedy: remedy.into() }
}

fn mistaken(key: &str, value: &str, setting: &'static str, metadata: &Metadata) -> Error {
    let (key, value) = (printable(key), short(value));
    let what = match metadata.get(setting) {
        Some(other) => format!(
            "metadata `{key}` is {value:?} and `{setting}` is {:?}; expected one of them, or the same",
            short(other)
        ),
        None => format!("metadata `{key}` is no setting; did you mean `{setting}`?"),
    };
    Error::UnknownSetting { what, remedy: format!("rename or remove it, or pass {}", flag(setting)) }
}

/// The beginning of a value; who prints it escapes it.
fn short(value: &str) -> String {
    value.chars().take(60).collect()
}

fn names() -> String {
    SETTINGS.iter().map(|setting| setting.name).collect::<Vec<_>>().join(", ")
}

fn kind_of(key: &str) -> Kind {
    if key == WRITTEN_BY || Setting::of(key).is_some() {
        return Kind::Known;
    }
    let word = plain(key);
    let word = word.strip_prefix("signflash").unwrap_or(&word);
    if let Some(setting) = said_otherwise(word) {
        return Kind::Like(setting);
    }
    if NOT_COMPUTED.contains(&word) {
        return Kind::NotComputed;
    }
    if let Some(name) = joined_elsewhere(word) {
        return Kind::Joined(name);
    }
    if is_like_cu_seqlens(word) {
        return Kind::CuSeqlens;
    }
    let near = SETTINGS.iter().find(|setting| is_near(word, &plain(setting.name)));
    let near = near
        .or_else(|| SETTINGS.iter().find(|setting| setting.words.iter().any(|other| is_near(word, other))));
    match near {
        Some(setting) => Kind::Like(setting),
        None if NOT_COMPUTED.iter().any(|other| is_near(word, other)) => Kind::NotComputed,
        // Short words have neighbours that mean something else: a task is no mask, and links are no sinks.
        None => {
            let near = JOINED_ELSEWHERE.iter().find(|(other, _)| other.len() > 5 && is_near(word, other));
            near.map_or(Kind::Foreign, |(_, name)| Kind::Joined(name))
        }
    }
}

/// Our name of a tensor that others call by this word.
fn joined_elsewhere(word: &str) -> Option<&'static str> {
    JOINED_ELSEWHERE.iter().find(|(other, _)| *other == word).map(|(_, name)| *name)
}

/// The setting that another library calls by this word, or that is spelled like this by others.
fn said_otherwise(word: &str) -> Option<&'static Setting> {
    let spelled = SETTINGS.iter().find(|setting| plain(setting.name) == word);
    spelled.or_else(|| SETTINGS.iter().find(|setting| setting.words.contains(&word)))
}

/// Whether it says where packed sequences begin.
fn is_like_cu_seqlens(word: &str) -> bool {
    CU_SEQLENS.iter().any(|known| is_near(word, &plain(known)))
}

/// Letters and digits in lower case: `is_causal`, `isCausal` and `is-causal` are one word.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// A letter wrong, missing, too many or in its neighbour's place; two of them in a long word.
fn is_near(word: &str, known: &str) -> bool {
    let most = match known.len() {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    };
    word.len() <= 2 * known.len() && damerau_levenshtein(word, known) <= most
}

/// Whether the file says the same by the setting's own name, or, without it, what is so anyway.
fn repeats(metadata: &Metadata, setting: &Setting, value: &str) -> bool {
    (setting.says_the_same)(value, metadata.get(setting.name).map(String::as_str))
}

/// Whether something that is not computed is switched off: a cap of 0.
fn is_neutral(value: &str) -> bool {
    match value.trim().to_ascii_lowercase().as_str() {
        "none" | "null" | "false" => true,
        number => number.parse::<f64>() == Ok(0.0),
    }
}

/// The dtype that an .npz file's settings claim must be the tensors'.
fn dtype(archive: &Archive, claimed: &str) -> Result<(), Error> {
    let named = ["q", "probs"].into_iter().find_map(|name| Some((name, archive.tensors.get(name)?)));
    match named {
        Some((name, tensor)) if tensor.data.name() != claimed => {
            let what =
                format!("metadata `dtype` is {:?}, but {name} is {}", short(claimed), tensor.data.name());
            Err(refuse(
                what,
                "correct or remove it; it is needed only for bf16, whose bits are stored as uint16",
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(format: Format, pairs: &[(&str, &str)], given: &Overrides) -> Result<(), String> {
        let metadata = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let archive = Archive { metadata, ..Archive::default() };
        judge(&archive, format, given).map_err(|error| error.to_string())
    }

    fn refused(format: Format, pairs: &[(&str, &str)]) -> String {
        judged(format, pairs, &Overrides::default()).expect_err(pairs[0].0)
    }

    #[test]
    fn other_words_and_typing_errors_are_refused_wherever_they_stand() {
        for format in [Format::Npz, Format::Safetensors] {
            for (key, setting) in [
                ("dropout", "dropout_p"),
                ("dropout_P", "dropout_p"),
                ("dropuot_p", "dropout_p"),
                ("attention_dropout", "dropout_p"),
                ("is_causal", "causal"),
                ("is_casual", "causal"),
                ("casual", "causal"),
                ("Seed", "seed"),
                ("sede", "seed"),
                ("scale", "softmax_scale"),
                ("softmax_scal", "softmax_scale"),
                ("signflash.dropout-p", "dropout_p"),
                ("philox_offset", "offset"),
                ("drop_rate", "dropout_p"),
                ("attn_drop", "dropout_p"),
                ("Layout", "layout"),
                ("logit_cap", "softcap"),
                ("soft_cap", "softcap"),
                ("attn_logit_softcapping", "softcap"),
            ] {
                let said = refused(format, &[(key, "1")]);
                assert!(said.contains(key) && said.contains(&format!("`{setting}`?")), "{key}: {said}");
            }
        }
    }

    #[test]
    fn what_is_not_computed_is_refused_unless_it_is_switched_off() {
        for format in [Format::Npz, Format::Safetensors] {
            for (key, on, off) in [
                ("block_table", "[[0]]", "None"),
                ("sequsedk", "7", "0"),
                ("attn_maks", "causal", "None"),
                ("alibi", "true", "False"),
            ] {
                let said = refused(format, &[(key, on)]);
                assert!(
                    said.contains("not computed") || said.contains("no setting says that"),
                    "{key}: {said}"
                );
                assert_eq!(judged(format, &[(key, off)], &Overrides::default()), Ok(()), "{key}");
            }
        }
    }

    #[test]
    fn a_window_by_another_name_is_refused_unless_it_hides_nothing() {
        for format in [Format::Npz, Format::Safetensors] {
            for (key, on, off) in [
                ("window_size", "(128, 0)", "(-1, -1)"),
                ("sliding_window", "4096", "None"),
                ("window_left", "128", "-1"),
                ("attention_window", "512", "null"),
                ("windw", "8,8", "-1,-1"),
            ] {
                assert!(refused(format, &[(key, on)]).contains("did you mean `window`?"), "{key}");
                assert_eq!(judged(format, &[(key, off)], &Overrides::default()), Ok(()), "{key}");
            }
            let both = [("window", "128,0"), ("window_size", "(128, 0)")];
            assert_eq!(judged(format, &both, &Overrides::default()), Ok(()));
            let said = refused(format, &[("window", "128,0"), ("window_size", "(-1, -1)")]);
            assert!(said.contains("expected one of them"), "{said}");
        }
    }

    #[test]
    fn a_word_of_ours_may_stand_beside_another_librarys_that_says_the_same() {
        let both = [("dropout_p", "0.20"), ("p", "0.2"), ("causal", "True"), ("is_causal", "true")];
        assert_eq!(judged(Format::Safetensors, &both, &Overrides::default()), Ok(()));
        let said = refused(Format::Safetensors, &[("dropout_p", "0.1"), ("p", "0.2")]);
        assert!(said.contains("\"0.1\"") && said.contains("\"0.2\""), "{said}");
        let given = Overrides { dropout_p: Some(0.3), ..Overrides::default() };
        assert_eq!(judged(Format::Safetensors, &[("dropout", "0.2")], &given), Ok(()));
    }

    #[test]
    fn what_is_somebody_elses_is_noted_where_it_may_stand_and_refused_elsewhere() {
        let foreign = [("format", "pt"), ("source", "a GPU"), ("step", "12"), ("epsilon", "1e-6")];
        let near = [("task", "text"), ("links", "none"), ("mass", "1"), ("base", "gpt2"), ("alias", "x")];
        assert_eq!(judged(Format::Safetensors, &near, &Overrides::default()), Ok(()));
        assert_eq!(judged(Format::Safetensors, &foreign, &Overrides::default()), Ok(()));
        assert!(
            refused(Format::Npz, &foreign[2..3])
                .contains("`step` is no setting; expected layout, window, causal")
        );
        assert_eq!(judged(Format::Npz, &foreign[1..2], &Overrides::default()), Ok(()));
        assert!(refused(Format::Safetensors, &[("signflash_colour", "1")]).contains("is no setting"));
        let archive = |present: &[&str]| Archive {
            metadata: foreign.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            present: present.iter().map(|name| name.to_string()).collect(),
            ..Archive::default()
        };
        let note = note(&archive(&["q", "visible"]), Format::Safetensors);
        assert_eq!(note.unwrap(), "not used: metadata epsilon, source, step; tensors visible\n");
        let refused = ["dropout_p", "is_causal", "attn_mask", "attn_bias", "alibi", "cu_seqlens", "s_aux"];
        for name in refused {
            assert!(
                judge(&archive(&["q", name]), Format::Safetensors, &Overrides::default()).is_err(),
                "{name}"
            );
        }
    }
}
