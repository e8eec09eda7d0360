"""Writes families for existing models: from torch, ONNX and Triton.

Every source becomes a `FamilyDraft`.  It is written as a folder like one that a person writes, and may be edited
freely.

    draft               what will be written: tensors, variants, steps, files; as family.toml
    folder              writes a draft into a new folder, checked as a server would, or nothing
    findings            what `probe` is asked, and answers
    probe               a process that builds torch modules and looks at what they take and give
    torch_source        drafts of torch modules
    onnx_source         drafts of ONNX files
    evaluation_rows     labelled files, CSVs, or rows without labels, as data.py
    triton_config       Triton's `config.pbtxt`, read
    triton_models       the models of a Triton repository as drafts, each or the reason why not
    templates           the Python that is written into families

This process never imports torch: `probe` runs in one of its own.
"""
