"""The items of two reporting check-lists, in short words of our own; the papers hold their full text.

The numbers and what each item is about were taken from open lists of both check-lists. The wording is not the papers',
which is theirs to publish.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a check-list.

    Attributes:
      number: as in the paper.
      section: of the paper that is written, such as "Methods".
      text: what the item asks for.
      topic: the key of the answer in `kmed.report.checklist.filled.ANSWERS`; "": only the authors know it.
      left: what only the authors can add to the answer; "": the answer is complete.
    """

    number: str
    section: str
    text: str
    topic: str = ""
    left: str = ""


@dataclasses.dataclass(frozen=True)
class Checklist:
    """A check-list: its short name, its title, the paper to cite, and its items in order."""

    name: str
    title: str
    paper: str
    items: tuple[Item, ...]


_PUBLISHED = "how it compares with published models"

CLAIM = Checklist(
    "CLAIM",
    "CLAIM 2024: Checklist for Artificial Intelligence in Medical Imaging",
    "Tejani AS, Klontzas ME, Gatti AA, et al. Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 "
    "Update. Radiology: Artificial Intelligence 2024;6(4):e240300",
    (
        Item("1", "Title and abstract", "That AI is used, and which kind", "technology", "the title"),
        Item("2", "Title and abstract", "A structured abstract"),
        Item("3", "Introduction", "Background, and the role that the model would have in practice"),
        Item("4", "Introduction", "Aims and hypotheses"),
        Item("5", "Methods: design", "Prospective or retrospective"),
        Item("6", "Methods: design", "Goal of the study", "task", "what the study is for"),
        Item("7", "Methods: data", "Where the data come from", "data", "who collected them, and where others get them"),
        Item("8", "Methods: data", "Who and what was included or excluded, and why"),
        Item("9", "Methods: data", "Preprocessing", "preprocessing"),
        Item("10", "Methods: data", "Which parts of the images were used", "whole", "what was cropped before kmed"),
        Item("11", "Methods: data", "De-identification"),
        Item("12", "Methods: data", "Missing data", "missing", "why labels are missing"),
        Item("13", "Methods: data", "How the images were acquired"),
        Item("14", "Methods: reference standard", "Definition of the reference standard", "labels", "how it was set"),
        Item("15", "Methods: reference standard", "Why this reference standard"),
        Item("16", "Methods: reference standard", "Who annotated, with which training"),
        Item("17", "Methods: reference standard", "How the test set was annotated, and with which software"),
        Item("18", "Methods: reference standard", "Agreement between and within annotators"),
        Item("19", "Methods: partitions", "How images were assigned to partitions, and the shares", "partitions"),
        Item("20", "Methods: partitions", "At which level the partitions are disjoint", "disjoint"),
        Item("21", "Methods: testing", "Size of the test set", "sizes", "why this size is enough"),
        Item("22", "Methods: model", "The model, its input and output", "model"),
        Item("23", "Methods: model", "Software and versions", "software"),
        Item("24", "Methods: model", "Initial weights", "initial"),
        Item("25", "Methods: training", "Training, augmentation and hyperparameters", "training"),
        Item("26", "Methods: training", "How the final model was selected", "selection"),
        Item("27", "Methods: training", "Ensembles", "ensemble"),
        Item("28", "Methods: evaluation", "Measures of performance", "measures", _PUBLISHED),
        Item("29", "Methods: evaluation", "Uncertainty and tests of significance", "uncertainty"),
        Item("30", "Methods: evaluation", "Robustness and sensitivity", "robustness", "further sensitivity analyses"),
        Item("31", "Methods: evaluation", "Explanations", "explanations", "whether the maps were validated"),
        Item("32", "Methods: evaluation", "Testing on internal data", "internal"),
        Item("33", "Methods: evaluation", "Testing on external data", "external", "why the data suit the purpose"),
        Item("34", "Methods: evaluation", "Registration, if it was a clinical trial"),
        Item(
            "35",
            "Results: data",
            "How many were included and excluded",
            "flow",
            "a flow chart from the first patient on",
        ),
        Item("36", "Results: data", "Who the patients were, per partition", "subgroups", "demographics per partition"),
        Item("37", "Results: performance", "Performance against the reference standard", "performance", _PUBLISHED),
        Item("38", "Results: performance", "Estimates with intervals, per class", "per_class"),
        Item("39", "Results: performance", "Errors", "errors", "what the errors mean clinically"),
        Item("40", "Discussion", "Limitations"),
        Item("41", "Discussion", "Meaning for practice, and what stands in the way"),
        Item("42", "Other information", "Full protocol or further technical detail", "command", "the study's protocol"),
        Item("43", "Other information", "Availability", "files", "where others get software, model and data"),
        Item("44", "Other information", "Funding and the role of the funders"),
    ),
)

TRIPOD = Checklist(
    "TRIPOD+AI",
    "TRIPOD+AI: reporting of clinical prediction models",
    "Collins GS, Moons KGM, Dhiman P, et al. TRIPOD+AI statement: updated guidance for reporting clinical prediction "
    "models that use regression or machine learning methods. BMJ 2024;385:e078378",
    (
        Item("1", "Title and abstract", "Title", "technology", "the title, with population and outcome"),
        Item("2", "Title and abstract", "Abstract, by the check-list for abstracts"),
        Item("3a", "Introduction", "Medical context, reasons, earlier models"),
        Item("3b", "Introduction", "Intended population, purpose and users"),
        Item("3c", "Introduction", "Known inequalities of health between groups"),
        Item("4", "Introduction", "Objectives: development, evaluation or both"),
        Item("5a", "Methods: data", "Sources of data", "data", "why these, and whom they represent"),
        Item("5b", "Methods: data", "Dates of the data"),
        Item("6a", "Methods: participants", "Setting, number and place of centres"),
        Item("6b", "Methods: participants", "Eligibility"),
        Item("6c", "Methods: participants", "Treatments"),
        Item(
            "7", "Methods: data", "Preparation and checks of the data", "preprocessing", "whether equal for all groups"
        ),
        Item("8a", "Methods: outcome", "Definition of the outcome", "labels", "how and when it was assessed"),
        Item("8b", "Methods: outcome", "Who assessed it, if that takes judgement"),
        Item("8c", "Methods: outcome", "Blinding of its assessment"),
        Item("9a", "Methods: predictors", "How predictors were chosen", "predictors"),
        Item("9b", "Methods: predictors", "Definition of the predictors", "predictors", "how images were acquired"),
        Item("9c", "Methods: predictors", "Who assessed predictors, if that takes judgement", "automatic"),
        Item("10", "Methods: sample size", "Study size, and whether it suffices", "sizes", "why this size is enough"),
        Item("11", "Methods: missing data", "Missing data", "missing", "why labels are missing"),
        Item("12a", "Methods: analysis", "How the data were partitioned and used", "partitions"),
        Item("12b", "Methods: analysis", "Transformation of the predictors", "preprocessing"),
        Item("12c", "Methods: analysis", "Type of model, how it was built and tuned", "training", "runs tried before"),
        Item("12d", "Methods: analysis", "Differences between clusters", "uncertainty", "differences between centres"),
        Item("12e", "Methods: analysis", "Measures and plots of performance", "measures"),
        Item("12f", "Methods: analysis", "Updating of the model at its evaluation"),
        Item("12g", "Methods: analysis", "How predictions were calculated", "predictions"),
        Item("13", "Methods: class imbalance", "Methods against class imbalance", "imbalance"),
        Item("14", "Methods: fairness", "Methods for fairness"),
        Item("15", "Methods: output", "Output of the model, and its thresholds", "output"),
        Item(
            "16", "Methods: training and evaluation", "Differences between both data", "shares", "setting, eligibility"
        ),
        Item("17", "Methods: ethics", "Ethical approval and consent"),
        Item("18a", "Open science", "Funding"),
        Item("18b", "Open science", "Conflicts of interest"),
        Item("18c", "Open science", "Protocol"),
        Item("18d", "Open science", "Registration"),
        Item("18e", "Open science", "Where the data are"),
        Item("18f", "Open science", "Where the code is", "command", "where others get the code of the study"),
        Item("19", "Patients and public", "Their involvement"),
        Item("20a", "Results: participants", "Flow of participants", "flow", "a diagram from the first participant on"),
        Item(
            "20b", "Results: participants", "Their characteristics", "subgroups", "demographics, dates and treatments"
        ),
        Item("20c", "Results: participants", "Comparison with the development data", "shares", "demographics"),
        Item("21", "Results: development", "Participants and events in each analysis", "events"),
        Item("22", "Results: specification", "The full model", "files", "who may use it, and where to get it"),
        Item("23a", "Results: performance", "Performance with intervals", "performance"),
        Item("23b", "Results: performance", "Differences between clusters", "subgroups", "differences between centres"),
        Item("24", "Results: updating", "Results of updating the model"),
        Item("25", "Discussion", "Interpretation, with fairness"),
        Item("26", "Discussion", "Limitations"),
        Item(
            "27a", "Discussion", "How poor input is recognised and handled", "novelty", "what users do with such images"
        ),
        Item("27b", "Discussion", "What users must do and know"),
        Item("27c", "Discussion", "Next steps for research"),
    ),
)

CHECKLISTS = (CLAIM, TRIPOD)
