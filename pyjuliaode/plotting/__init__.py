"""Figures of the experiments; every model keeps its colour and line style in all of them.

The functions take plain data, as in metrics.json, and return a matplotlib Figure that belongs to
no window and no backend. matplotlib is imported when the first figure is drawn.
"""

from .convergence import excess_loss as excess_loss
from .convergence import momentum_refit as momentum_refit
from .costs import evaluations as evaluations
from .costs import memory as memory
from .costs import nfe_vs_tolerance as nfe_vs_tolerance
from .costs import scaling as scaling
from .crosscheck import crosscheck as crosscheck
from .paths import crossing as crossing
from .paths import norm_growth as norm_growth
from .paths import optimizer_paths as optimizer_paths
from .planes import point_cloud as point_cloud
from .planes import point_cloud_evolution as point_cloud_evolution
from .planes import separation as separation
from .style import label as label
from .style import save as save
from .training import comparison as comparison
from .training import descent as descent
from .training import training as training
