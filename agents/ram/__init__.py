"""The Recurrent Attention Model of Mnih et al. 2014, trained by REINFORCE."""
