import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from . import data


def load(variant, folder):  # fits when a worker starts: seconds at most, and there is no pickle to trust
    pixels, labels = data.rows()
    model = LogisticRegression() if variant.name == "linear" else SVC()
    model.fit(pixels[:797], labels[:797])
    return lambda inputs: [model.decision_function(inputs[0]).astype(np.float32)]
