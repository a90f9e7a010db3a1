//! What both service contracts offer under the same names. Solidity gives each its own generated types, so the methods are
//! written once as a macro and expanded over both.

/// Methods of a service contract. `$row` is what its lists of sub-accounts hold. The names `abi`, `calls`, `serving`, `NAME`,
/// `PAGE`, `Service`, `ServiceParams` and `Account` are those of the module that expands it.
macro_rules! common_methods {
    ($contract:ident, $row:ident) => {
        impl $contract<'_> {
            /// The service of `provider`; `None` if there is none.
            ///
            /// # Errors
            /// A failed read.
            pub async fn service(&self, provider: Address) -> Result<Option<Service>, ChainError> {
                let answer = self
                    .client
                    .call(
                        NAME,
                        self.address(),
                        None,
                        &abi::getServiceCall { provider },
                    )
                    .await;
                Ok(answer
                    .or_missing(&[ContractErrorKind::ServiceNotExist])?
                    .map(Into::into))
            }

            /// The sub-account of `user` with `provider`; `None` if there is none.
            ///
            /// # Errors
            /// A failed read.
            pub async fn account(
                &self,
                user: Address,
                provider: Address,
            ) -> Result<Option<Account>, ChainError> {
                let answer = self
                    .client
                    .call(
                        NAME,
                        self.address(),
                        None,
                        &abi::getAccountCall { user, provider },
                    )
                    .await;
                Ok(answer
                    .or_missing(&[ContractErrorKind::AccountNotExists])?
                    .map(Into::into))
            }

            /// Whether `user` has a sub-account with `provider`.
            ///
            /// # Errors
            /// A failed read.
            pub async fn account_exists(
                &self,
                user: Address,
                provider: Address,
            ) -> Result<bool, ChainError> {
                self.client
                    .call(
                        NAME,
                        self.address(),
                        None,
                        &abi::accountExistsCall { user, provider },
                    )
                    .await
            }

            /// Every sub-account.
            ///
            /// # Errors
            /// A failed read.
            pub async fn accounts(&self) -> Result<Vec<$row>, ChainError> {
                let mut accounts = Vec::new();
                loop {
                    let call = abi::getAllAccountsCall {
                        offset: U256::from(accounts.len()),
                        limit: U256::from(PAGE),
                    };
                    let page = self.client.call(NAME, self.address(), None, &call).await?;
                    let done = page.accounts.is_empty();
                    accounts.extend(page.accounts.into_iter().map(<$row>::from));
                    if done || U256::from(accounts.len()) >= page.total {
                        return Ok(accounts);
                    }
                }
            }

            /// Every sub-account with `provider`.
            ///
            /// # Errors
            /// A failed read.
            pub async fn accounts_by_provider(
                &self,
                provider: Address,
            ) -> Result<Vec<$row>, ChainError> {
                let mut accounts = Vec::new();
                loop {
                    let offset = U256::from(accounts.len());
                    let call = abi::getAccountsByProviderCall {
                        provider,
                        offset,
                        limit: U256::from(PAGE),
                    };
                    let page = self.client.call(NAME, self.address(), None, &call).await?;
                    let done = page.accounts.is_empty();
                    accounts.extend(page.accounts.into_iter().map(<$row>::from));
                    if done || U256::from(accounts.len()) >= page.total {
                        return Ok(accounts);
                    }
                }
            }

            /// Every sub-account of `user`.
            ///
            /// # Errors
            /// A failed read.
            pub async fn accounts_by_user(&self, user: Address) -> Result<Vec<$row>, ChainError> {
                let mut accounts = Vec::new();
                loop {
                    let offset = U256::from(accounts.len());
                    let call = abi::getAccountsByUserCall {
                        user,
                        offset,
                        limit: U256::from(PAGE),
                    };
                    let page = self.client.call(NAME, self.address(), None, &call).await?;
                    let done = page.accounts.is_empty();
                    accounts.extend(page.accounts.into_iter().map(<$row>::from));
                    if done || U256::from(accounts.len()) >= page.total {
                        return Ok(accounts);
                    }
                }
            }

            /// Pending refunds of a sub-account, in neuron; `None` without one.
            ///
            /// # Errors
            /// A failed read.
            pub async fn pending_refund(
                &self,
                user: Address,
                provider: Address,
            ) -> Result<Option<U256>, ChainError> {
                let call = abi::getPendingRefundCall { user, provider };
                let answer = self.client.call(NAME, self.address(), None, &call).await;
                answer.or_missing(&[ContractErrorKind::AccountNotExists])
            }

            /// Seconds between a refund request and its collection.
            ///
            /// # Errors
            /// A failed read.
            pub async fn lock_time_s(&self) -> Result<u64, ChainError> {
                let seconds = self
                    .client
                    .call(NAME, self.address(), None, &abi::lockTimeCall {})
                    .await?;
                Ok(seconds.saturating_to())
            }

            /// Stake of a provider, in neuron; `None` on contracts that do not tell.
            ///
            /// # Errors
            /// A failed read.
            pub async fn stake_of(&self, provider: Address) -> Result<Option<U256>, ChainError> {
                let answer = self
                    .client
                    .call(NAME, self.address(), None, &abi::stakeOfCall { provider })
                    .await;
                answer.or_missing(&[ContractErrorKind::Empty])
            }

            /// Stake that a first registration needs, in neuron.
            ///
            /// # Errors
            /// A failed read.
            pub async fn min_provider_stake(&self) -> Result<U256, ChainError> {
                self.client
                    .call(NAME, self.address(), None, &abi::MIN_PROVIDER_STAKECall {})
                    .await
            }

            /// Administrator of the contract.
            ///
            /// # Errors
            /// A failed read.
            pub async fn owner(&self) -> Result<Address, ChainError> {
                self.client
                    .call(NAME, self.address(), None, &abi::ownerCall {})
                    .await
            }

            /// Provider: registers the wallet's service with the minimum stake, or updates it.
            ///
            /// # Errors
            /// As [`ChainClient::send`].
            pub async fn add_or_update_service(
                &self,
                params: &ServiceParams,
            ) -> Result<Receipt, ChainError> {
                let provider = self.client.wallet_address().ok_or(ChainError::NoWallet)?;
                let stake = match self.service(provider).await? {
                    Some(_) => U256::ZERO,
                    None => self.min_provider_stake().await?,
                };
                self.client
                    .send(calls::add_or_update_service(self.address(), params, stake))
                    .await
            }

            /// Provider: removes the wallet's service and gets the stake back.
            ///
            /// # Errors
            /// As [`ChainClient::send`].
            pub async fn remove_service(&self) -> Result<Receipt, ChainError> {
                self.client
                    .send(serving::remove_service(self.address()))
                    .await
            }

            /// User: sets the wallet's acknowledgement of the provider's TEE signer.
            ///
            /// # Errors
            /// As [`ChainClient::send`].
            pub async fn acknowledge_tee_signer(
                &self,
                provider: Address,
                acknowledged: bool,
            ) -> Result<Receipt, ChainError> {
                self.client
                    .send(serving::acknowledge_tee_signer(
                        self.address(),
                        provider,
                        acknowledged,
                    ))
                    .await
            }

            /// Owner: accepts the TEE signer that `provider` registered.
            ///
            /// # Errors
            /// As [`ChainClient::send`].
            pub async fn acknowledge_tee_signer_by_owner(
                &self,
                provider: Address,
            ) -> Result<Receipt, ChainError> {
                self.client
                    .send(serving::acknowledge_tee_signer_by_owner(
                        self.address(),
                        provider,
                    ))
                    .await
            }

            /// Owner: takes the acceptance back.
            ///
            /// # Errors
            /// As [`ChainClient::send`].
            pub async fn revoke_tee_signer_acknowledgement(
                &self,
                provider: Address,
            ) -> Result<Receipt, ChainError> {
                self.client
                    .send(serving::revoke_tee_signer_acknowledgement(
                        self.address(),
                        provider,
                    ))
                    .await
            }
        }
    };
}

pub(crate) use common_methods;
