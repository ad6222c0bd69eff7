// What this pack's own elements say, in the front end's language: locales/*/main.json, which ComfyUI serves; English where it is not translated.

import { app } from "../../scripts/app.js";

let languages = {};

// Before anything is shown. The front end reads the same, but keeps it to itself.
export async function readTexts() {
    languages = await app.api
        .fetchApi("/i18n")
        .then((answer) => answer.json())
        .catch(() => ({}));
}

// An English text in the language, its {names} replaced by values. locales/translations.json holds each text that is given here.
export function t(text, values = {}) {
    const language = app.extensionManager.setting.get("Comfy.Locale") ?? "en";
    const known = languages[language] ?? languages[language.split("-")[0]];
    return (known?.intrinsicLab?.[text] || text).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}
