"""The web pages, as data: `pocketclip.pages.web_files` reads them.

| folder | holds |
|---|---|
| `templates` | one HTML file per page, around `layout.html` |
| `app` | ES modules: `shared` by all pages, `inference`, `labels`, and one folder per page |
| `styles` | style sheets: `base.css` for all pages, one per page |
| `icons` | the icons of the installed app |
| `vendor` | onnxruntime-web and tokenizers, copied by `hatch_build.py`; not in the repository |
"""
